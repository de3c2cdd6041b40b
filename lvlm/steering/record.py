"""What is stored of a run's steering, `RUN/steering.json`: written and read through these models, so that
they can't differ.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationError

from lvlm.errors import UserError
from lvlm.interfaces import Section
from lvlm.interfaces.brief import brief_of
from lvlm.statistics.interval import Interval
from lvlm.system.records import MOST_BYTES, faults, read_values
from lvlm.system.regular import read_regular

LOGGER = logging.getLogger(__name__)

VERSION = 2  # of what the numbers mean; a change of any measure or interval is a new one
READABLE = (1, VERSION)  # 1: percentile intervals, no differences by group, no names of units

# how the file says that there is none
_NO_INTERVAL: dict[str, float | None] = {"value": None, "low": None, "high": None}


def _interval_as_stored(found: Interval | None) -> dict[str, float | None]:
    """Null for a value that isn't there, and for an end that isn't: JSON knows no infinity."""
    if found is None:
        return _NO_INTERVAL
    return {"value": found.value, "low": None, "high": None} if not found.bounded else dict(vars(found))


def _interval_from_stored(stored: Any) -> Any:
    if stored == _NO_INTERVAL:
        return None
    match stored:
        case {"value": float(value), "low": None, "high": None}:
            return Interval(value, -math.inf, math.inf)
    return stored


MaybeInterval = Annotated[
    Interval | None, BeforeValidator(_interval_from_stored), PlainSerializer(_interval_as_stored)
]
"""A 95 % interval, without end where one group alone carries the statistic; None where it has no value."""

ByGroup = list[float | None] | None
"""A difference, group by group, in the order of the test windows: the numbers of the groups where it is a
mean over them, and pseudo-values (`lvlm.statistics.jackknife`) where it is an ICC or a kappa. Their mean is
the difference. Runs with the same data and settings have the same groups, so that seeds and groups are
crossed. None for a group without the number; None in place of all of them where nothing is known by group.
"""


class Contrast(Section):
    """One number among samples that share codes, among samples that don't, and the difference, paired by
    group. Without a latent there is nothing to share, and only `apart` is known.
    """

    shared: MaybeInterval
    apart: MaybeInterval
    difference: MaybeInterval
    difference_by_group: ByGroup = None


class Transfer(Section):
    """Shares of texts whose number is the source's, within the tolerance; each prompt is another row's. A
    group is one source: 1 where its codes alone carry the number over, -1 where codes of the prior alone
    give it, 0 where both do or neither.
    """

    sources: int
    success: MaybeInterval
    prior_rate: MaybeInterval
    difference: MaybeInterval
    difference_by_group: ByGroup = None


class Spread(Section):
    """The distribution of a number that the data draw uniformly, against the uniform one; non-integer values
    and texts without the number are left out.
    """

    counts: list[int]
    left_out: int
    chi_square: float
    p_value: float


class Number(Section):
    """A number of a text: its ICC(1) and its transfer."""

    name: str
    unit: str
    tolerance: float
    control: bool
    icc: Contrast
    transfer: Transfer | None
    spread: Spread | None


class Flags(Section):
    """Flags at each position: the share that is set in texts of the prior, and their kappa."""

    name: str
    rate: float
    kappa: Contrast


class Check(Section):
    """The share of prior texts that pass, with its Clopper-Pearson interval."""

    name: str
    share: Interval


class Change(Section):
    """What a change does to texts, all else held: the share of tokens that differ, and for each number the
    share of texts in which it differs by more than the tolerance.
    """

    tokens: float
    numbers: dict[str, float]


class Units(Section):
    """What single units of the codes do under the same noise of the tokens: each in turn is changed in all
    slots. Between what no change can exceed by much, all codes redrawn, and what noise alone does. `names`
    are the quantizer's, one for each unit.
    """

    units: list[Change]
    names: list[str] | None = None
    all_redrawn: Change
    other_noise: Change


class Diversity(Section):
    """Diversity of texts from the prior of codes. Only arms of equal entropy compare; `temperature` brought
    it there.
    """

    texts: int
    temperature: float
    entropy_nats_per_token: float
    distinct: dict[str, float]
    self_bleu: float


class Group(Section):
    """Some texts that share a prompt and codes, or a prompt alone."""

    prompt: str
    shared: list[str]
    apart: list[str]


class Steering(Section):
    """All of it. `key` is the hash of what the numbers depend on: weights, data, settings, version."""

    version: int
    key: str
    lvlm: str
    step: int
    has_latent: bool
    settings: dict[str, int | float | None]
    numbers: list[Number]
    flags: list[Flags]
    checks: list[Check]
    units: Units | None
    diversity: Diversity
    groups: list[Group]

    def __repr__(self) -> str:
        return brief_of("Steering", ((name, getattr(self, name, None)) for name in type(self).model_fields))

    __str__ = __repr__

    @property
    def control_came_out(self) -> bool:
        """Whether these are data with a positive control, and samples that share codes agree in it: the
        interval of the difference lies above 0.
        """
        differences = [number.icc.difference for number in self.numbers if number.control]
        return any(difference is not None and difference.above_zero for difference in differences)


FILE = "steering.json"


def read_steering(folder: Path) -> Steering | None:
    """What is stored of a run; None where nothing is, or nothing that this version can read. A damaged file
    is none, after a warning.
    """
    path = folder / FILE
    try:
        if not path.exists() or read_values(path, "a run's steering").get("version") not in READABLE:
            return None
        return Steering.model_validate_json(read_regular(path, most_bytes=MOST_BYTES))
    except UserError as error:
        LOGGER.warning(f"{error}; left out until `lvlm steer` measures it anew")
    except ValidationError as error:
        LOGGER.warning(
            f"{path}: not a run's steering: {faults(error)}; left out until `lvlm steer` measures it anew"
        )
    return None
