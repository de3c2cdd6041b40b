"""Whether codes steer: what samples that share them have in common, and what changes with them.

    groups of one prompt ─┬─ codes of the group's first ─► shared ─┬─ ICC of each number, kappa of flags
                          └─ codes each its own ─────────► apart ──┘   (the difference, paired by group)
    test rows ─ posterior ─ codes ─ another row's prompt ─► the source's number again?
    apart, one unit of all codes changed, same noise ─────► how much of the text is another?

Shape legend: G groups, M members, N = G M rows, P prompt tokens, L tokens after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lvlm.interfaces.codec import joined
from lvlm.statistics.agreement import icc, kappa, mean, minus
from lvlm.statistics.diversity import distinct, self_bleu
from lvlm.statistics.interval import Interval, clopper_pearson
from lvlm.statistics.jackknife import FloatArray, Statistic, group_interval, pseudo_values
from lvlm.steering.probe import Prober, Prompts, Texts
from lvlm.steering.record import (
    Change,
    Check,
    Contrast,
    Diversity,
    Flags,
    Group,
    Number,
    Spread,
    Transfer,
    Units,
)

if TYPE_CHECKING:
    from lvlm.data.attributes import Attribute
    from lvlm.interfaces import Codec

NGRAMS = (1, 2, 4)
GROUPS_KEPT = 4
MEMBERS_KEPT = 6
"""Texts that are kept to look at."""


def measure(
    prober: Prober,
    prompts: Prompts,
    attributes: tuple[Attribute, ...],
    codec: Codec,
    *,
    groups: int,
    samples: int,
    entropy_nats: float | None,
) -> dict[str, Any]:
    """Everything of `lvlm.steering.record.Steering` but who and what.

    Args:
        prober: of the model.
        prompts: at least `groups` rows.
        attributes: of the data.
        codec: for the texts that are kept.
        groups: of samples with one prompt and one code.
        samples: of each group.
        entropy_nats: the mean token entropy at which diversity is measured; that of temperature 1 unless
            given.
    """
    model = prober.model
    prompt_NP = prompts.prompt_NP[:groups].repeat_interleave(samples, 0)
    apart = prober.texts(prompt_NP, noise="apart")
    shared = None
    if apart.codes is not None:
        of_first = apart.codes[::samples].repeat_interleave(samples, 0)
        shared = prober.texts(prompt_NP, of_first, noise="shared")

    def contrast(attribute: Attribute, statistic: Callable[[Any], Statistic]) -> Contrast:
        def of(texts: Texts) -> Statistic:
            values = _of(attribute, texts)
            return statistic(values.reshape(groups, samples, *values.shape[1:]))

        alone = of(apart)
        if shared is None:
            return Contrast(shared=None, apart=group_interval(alone), difference=None)
        together = of(shared)
        difference = minus(together, alone)
        return Contrast(
            shared=group_interval(together),
            apart=group_interval(alone),
            difference=group_interval(difference),
            difference_by_group=_by_group(difference),
        )

    by_scale = {scale: [a for a in attributes if a.scale == scale] for scale in ("number", "flags", "check")}
    transfers = _transfers(prober, prompts, by_scale["number"]) if apart.codes is not None else {}
    return {
        "has_latent": model.latent is not None,
        "numbers": [
            Number(
                name=a.name,
                unit=a.unit,
                tolerance=a.tolerance,
                control=a.control,
                icc=contrast(a, icc),
                transfer=transfers.get(a.name),
                spread=None if a.uniform_over is None else spread(_of(a, apart), a.uniform_over),
            )
            for a in by_scale["number"]
        ],
        "flags": [
            Flags(name=a.name, rate=float(_of(a, apart).mean()), kappa=contrast(a, kappa))
            for a in by_scale["flags"]
        ],
        "checks": [Check(name=a.name, share=share_of(_of(a, apart))) for a in by_scale["check"]],
        "units": _units(prober, apart, by_scale["number"]),
        "diversity": _diversity(prober, prompts.prompt_NP, entropy_nats),
        "groups": kept(codec, apart, shared, samples),
    }


def _of(attribute: Attribute, texts: Texts) -> NDArray[Any]:
    return attribute.measure(texts.prompt_NP.numpy(), texts.text_NL.numpy())


def _by_group(difference: Statistic) -> list[float | None] | None:
    found_G = pseudo_values(difference)
    return None if found_G is None else [None if np.isnan(one) else float(one) for one in found_G]


def same(values_N: FloatArray, others_N: FloatArray, tolerance: float) -> NDArray[np.bool_]:
    """Which numbers are the same within the tolerance; one that isn't there equals no other."""
    with np.errstate(invalid="ignore"):
        return np.abs(values_N - others_N) <= tolerance


def differ(values_N: FloatArray, others_N: FloatArray, tolerance: float) -> float:
    """The share of texts whose number is another, or is there on one side only."""
    neither_N = np.isnan(values_N) & np.isnan(others_N)
    return float((~same(values_N, others_N, tolerance) & ~neither_N).mean())


def share_of(passed_N: NDArray[np.bool_]) -> Interval:
    """The share of texts that pass, with its exact interval."""
    return clopper_pearson(int(passed_N.sum()), len(passed_N))


def spread(values_N: FloatArray, levels: int) -> Spread:
    """The chi-square test of integers against the uniform distribution over 0 to `levels` - 1."""
    from scipy.stats import chi2

    is_level_N = np.isin(values_N, np.arange(levels))
    counts = np.bincount(values_N[is_level_N].astype(np.int64), minlength=levels)
    expected = counts.sum() / levels
    chi_square = float(((counts - expected) ** 2).sum() / expected) if expected else 0.0
    return Spread(
        counts=counts.tolist(),
        left_out=int((~is_level_N).sum()),
        chi_square=chi_square,
        p_value=float(chi2.sf(chi_square, levels - 1)) if expected else 1.0,
    )


def _transfers(prober: Prober, prompts: Prompts, numbers: list[Attribute]) -> dict[str, Transfer]:
    """The codes of each source, in front of them the prompt of the row after it, so that what a prompt tells
    can't pass for what the codes do; and the same prompts with codes of the prior. Sources without the number
    are left out.
    """
    if len(prompts.prompt_NP) < 2:
        return {}
    source = Texts(prompts.prompt_NP, prompts.text_NL, None)
    foreign_NP = prompts.prompt_NP.roll(-1, 0)
    codes = prober.codes_of(prompts.rows, noise="sources")
    steered = prober.texts(foreign_NP, codes, noise="transfer")
    free = prober.texts(foreign_NP, noise="transfer, prior")
    found = {}
    for a in numbers:
        wanted_N = _of(a, source)
        there_N = np.isfinite(wanted_N)
        if not there_N.any():
            continue
        hit_N, by_chance_N = (same(_of(a, texts), wanted_N, a.tolerance) for texts in (steered, free))
        difference = mean(np.where(there_N, hit_N.astype(np.float64) - by_chance_N, np.nan))
        found[a.name] = Transfer(
            sources=int(there_N.sum()),
            success=share_of(hit_N[there_N]),
            prior_rate=share_of(by_chance_N[there_N]),
            difference=group_interval(difference),
            difference_by_group=_by_group(difference),
        )
    return found


def _units(prober: Prober, apart: Texts, numbers: list[Attribute]) -> Units | None:
    latent = prober.model.latent
    if latent is None or apart.codes is None:
        return None
    quantizer, codes = latent.quantizer, apart.codes
    if not quantizer.units:
        return None
    changed = [quantizer.with_unit_changed(codes, unit) for unit in range(len(quantizer.units))]

    def under(codes: Tensor, noise: str = "units") -> Texts:
        return prober.texts(apart.prompt_NP, codes, noise=noise)

    before = under(codes)

    def change(after: Texts) -> Change:
        return Change(
            tokens=float((after.text_NL != before.text_NL).double().mean()),
            numbers={a.name: differ(_of(a, after), _of(a, before), a.tolerance) for a in numbers},
        )

    redrawn = codes.roll(1, 0)  # another sample's: also codes of the prior, and none its own
    return Units(
        units=[change(under(one)) for one in changed],
        names=list(quantizer.units),
        all_redrawn=change(under(redrawn)),
        other_noise=change(under(codes, "units, other")),
    )


def _diversity(prober: Prober, prompt_NP: Tensor, entropy_nats: float | None) -> Diversity:
    noise, temperature = "diversity", 1.0
    if entropy_nats is not None:
        temperature = prober.temperature_of(entropy_nats, prompt_NP, noise=noise)
    texts = prober.texts(prompt_NP, noise=noise, temperature=temperature)
    rows = texts.text_NL.tolist()
    return Diversity(
        texts=len(rows),
        temperature=temperature,
        entropy_nats_per_token=prober.entropy_nats(texts, temperature),
        distinct={str(n): distinct(rows, n) for n in NGRAMS},
        self_bleu=self_bleu(rows),
    )


def kept(codec: Codec, apart: Texts, shared: Texts | None, samples: int) -> list[Group]:
    """Some texts of the first groups, to look at."""

    def some_of(group: int) -> Group:
        first = group * samples
        some = slice(first, first + min(samples, MEMBERS_KEPT))
        rows = [texts.text_NL[some].tolist() for texts in (shared, apart) if texts is not None]
        prompt = apart.prompt_NP[first].tolist()
        found = [joined(codec, prompt, row) for row in itertools.chain(*rows)]
        shown = min((one.prompt for one in found), key=len)  # as far as no text changes it
        texts = ["".join(one)[len(shown) :] for one in found]
        return Group(prompt=shown, shared=texts[: -len(rows[-1])], apart=texts[-len(rows[-1]) :])

    return [some_of(group) for group in range(min(GROUPS_KEPT, len(apart.text_NL) // samples))]
