"""What may be shown of steering. "Codes do not steer" is also what a broken measurement says, so a null
result is shown only where a positive control has come out: a run of the same version of lvlm on data that are
made such that a code must be able to fix an attribute (`lvlm.data.attributes.Attribute.control`), with the
interval of its difference in ICC above 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lvlm.errors import UserError, shortened
from lvlm.statistics.interval import Interval
from lvlm.steering.record import FILE, Steering, read_steering
from lvlm.system.files import given_path, is_folder

HIDDEN = "not shown"
WHY_HIDDEN = (
    "no steering to be seen, and no positive control has come out, so that this may be the measurement's "
    "fault; run "
    "`lvlm study letters_codes`, or name a run on the letters data that steers as --control"
)


@dataclass(frozen=True)
class Gate:
    """Lets results pass: all of them once a control has come out, else only those that are no null.

    open  a control has come out
    """

    open: bool

    @classmethod
    def of(cls, controls: Iterable[Steering], *, lvlm: str) -> Gate:
        """Results of runs that may serve as controls, made by this version of lvlm."""
        return cls(any(control.lvlm == lvlm and control.control_came_out for control in controls))

    def shows(self, difference: Interval | None) -> bool:
        """Whether a difference, and the numbers behind it, may be shown."""
        return self.open or difference is None or difference.without_zero


def read_control(folder: str | Path) -> Steering:
    """A run's steering that may open the gate.

    Raises:
        UserError: it has none, or its control did not come out.
    """
    path = given_path(folder, "the control's folder")
    if not is_folder(path):
        raise UserError(
            f"{shortened(str(folder), 200)}: no such folder; name a run that `lvlm steer` measured"
        )
    found = read_steering(path)
    if found is None:
        raise UserError(
            f"{folder}: has no {FILE} that this version can read; make it with: lvlm steer {folder}"
        )
    if not found.control_came_out:
        raise UserError(
            f"{folder}: no positive control: its data name none (the letters data do), or samples that "
            f"share codes "
            "don't agree in it"
        )
    return found
