"""The report over small synthetic studies: numbers by hand, refusals, banners, and a page that is safe
offline.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from lvlm.cli.app import main
from lvlm.errors import UserError
from lvlm.report import (
    Report,
    ReportRun,
    StudyRecord,
    comparison_table,
    read_folder,
    read_report,
    render_report,
    report_study,
    write_figures,
    write_record,
)
from lvlm.report.page import visible
from lvlm.report.tables import Table, comparison, costs, diagnostics, latents
from lvlm.report.verdicts import verdicts, word_of
from lvlm.report.words import banners
from lvlm.statistics import Interval, paired_interval

TARGETS = np.array([10, 30])  # two windows, 40 target tokens


class StudyFolder:
    """Writes run folders as a study does; every estimate is the same number of nats per token in each
    window.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.runs: list[ReportRun] = []

    def add(
        self,
        arm: str,
        seed: int,
        nll: float,
        *,
        kl: float | None = None,
        budget: float | None = 1.0,
        oracle: float | None = None,
        ce_posterior: float | None = None,
        **changes: Any,
    ) -> Path:
        """A baseline when `kl` (nats per slot, one slot per row) is None, else an arm with a latent."""
        folder = self.out / arm / f"seed{seed}"
        folder.mkdir(parents=True)
        self.runs.append(ReportRun(arm, seed, folder))
        values = {"nll_exact": nll}
        if kl is not None:
            rate = kl * 2 / 40
            values = {
                "ce_posterior": nll if kl > 0.01 else nll + 0.3,
                "kl": rate,
                "elbo": nll + 0.2,
                "ce_prior": nll + 0.3,
                "nll_iwae_16": nll,
            }
        if ce_posterior is not None:
            values["ce_posterior"] = ce_posterior
        if oracle is not None:
            values["nll_oracle"] = oracle
        np.savez(
            folder / "evaluation.npz", targets=TARGETS, **{name: v * TARGETS for name, v in values.items()}
        )
        evaluation = {
            "schema": 3,
            "step": 300,
            "windows_hash": "cafe",
            "windows": 2,
            "target_tokens": 40,
            "codec": "bytes",
            "bytes_per_token": 1.0,
            "headline": "nll_exact" if kl is None else "nll_iwae_16",
            "settings": {"nll_exact": "Exact()"} if kl is None else {"nll_iwae_16": "Importance(k=16)"},
            "ce_by_position": [nll + 0.1, None, nll - 0.1],
            "estimates": {
                name: {
                    "nats_per_token": value,
                    "stderr": 0.1,
                    "bits_per_byte": value / np.log(2),
                    "bound": name not in ("ce_posterior", "kl"),
                }
                for name, value in values.items()
            },
            "latent": None
            if kl is None
            else {
                "budget_nats_per_slot": budget,
                "slots_per_row": 1,
                "kl_nats_per_slot": kl,
                "active_units": 3,
                "units": 8,
                "kl_by_slot": [kl, kl / 2],
            },
            "parameters": {"backbone": 1_230_000, "latent": 0 if kl is None else 45_600, "table": 0},
            "tokens_per_second": 1000.0 + seed,
            "peak_memory_mib": 100.0 + seed,
            "sample": {"prompt": "Once ", "text": "upon a time", "tokens": 4, "temperature": 1.0},
            **changes,
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        curve = [{"event": "train", "step": 10, "loss": 3.0}]
        key = "nll_exact" if kl is None else "elbo"
        curve += [{"event": "evaluate", "step": s, key: nll + 1 / s, "kl": kl} for s in (100, 200, 300)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
        (folder / "recipe.yaml").write_text(f"arm: {arm}\n")
        (folder / "run.json").write_text(json.dumps({"versions": {"torch": "2.9"}, "created": "today"}))
        return folder

    def nats(self, folder: Path) -> dict[str, Any]:
        with np.load(folder / "evaluation.npz") as arrays:
            return dict(arrays)

    def rewrite(self, arm: str, seed: int, **nats: Any) -> None:
        """Other nats of each window, and the means that go with them."""
        folder = self.out / arm / f"seed{seed}"
        arrays = self.nats(folder) | nats
        np.savez(folder / "evaluation.npz", **arrays)
        evaluation = json.loads((folder / "evaluation.json").read_text())
        for name, estimate in evaluation["estimates"].items():
            estimate["nats_per_token"] = float(arrays[name].sum() / TARGETS.sum())
        (folder / "evaluation.json").write_text(json.dumps(evaluation))

    def jitter(self, folder: Path, rng: np.random.Generator) -> dict[str, Any]:
        """Random changes to the nats of every window; the new ones."""
        nats = {name: array + rng.normal(0, 1, 2) for name, array in self.nats(folder).items()}
        nats["targets"] = TARGETS
        self.rewrite(folder.parent.name, int(folder.name.removeprefix("seed")), **nats)
        return nats

    def read(self, controls: Sequence[str] = ("baseline",)) -> Report:
        return read_report(
            self.out, title="A study", description="Why.", command="go", controls=controls, runs=self.runs
        )

    def page(self, controls: Sequence[str] = ("baseline",)) -> str:
        return render_report(self.read(controls)).read_text("utf-8")


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


@pytest.fixture
def usual(study: StudyFolder) -> StudyFolder:
    """A baseline, an arm that reads its codes, and one of which one run in three doesn't."""
    for seed in range(3):
        study.add("baseline", seed, 1.5 + 0.01 * seed)
        study.add("free", seed, 1.6 + 0.01 * seed, kl=0.5)
        study.add("vae", seed, 1.4 + 0.01 * seed, kl=0.001 if seed == 1 else 0.4)
    return study


def cells(
    report: Report, label: str, of: Callable[[Report], Table] = comparison
) -> dict[str, tuple[str, str]]:
    """One row of a table by 'header unit'."""
    table = of(report)
    row = next(row for row in table.rows if row[0].text == label)
    return {
        f"{header.text} {header.unit}".strip(): tuple(cell)
        for header, cell in zip(table.headers, row, strict=True)
    }


class Page(HTMLParser):
    """Tags that must balance, addresses that would be fetched, and the text of each table."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.seen: set[str] = set()
        self.tables: dict[str, str] = {}
        self.text = ""
        self._table = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = given["aria-label"] or ""
        self.ids += [value for name, value in attrs if name == "id" and value]
        loading = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.loads += [
            value for name, value in attrs if name in loading and value and not value.startswith("#")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, tag
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self._table:
            self.tables[self._table] = self.tables.get(self._table, "") + data


# ---- numbers
# --------------------------------------------------------------------------------------------------


def test_table_values_by_hand(usual: StudyFolder) -> None:
    report = usual.read()
    row = cells(report, "free")
    assert row["arm"] == ("free", "3 seeds")
    assert row["headline nats/token"][0] == "1.6100"
    assert row["difference nats/token"] == ("+0.1000", "[+0.1000, +0.1000]")
    assert row["estimator"] == ("nll_iwae_16", "upper bound")
    assert row["raw KL nats/token"][0] == "0.0250"
    assert row["read seeds"] == ("3 of 3", "[0.29, 1.00]")
    assert row["worth nats/token"] == ("+0.3000", "[+0.3000, +0.3000]")
    assert row["parameters"] == ("1.28 M", "latent 45.6 k")
    baseline = cells(report, "baseline")
    assert baseline["difference nats/token"][0] == "control"
    assert baseline["estimator"] == ("nll_exact", "exact")
    assert baseline["read seeds"][0] == "–"
    spent = cells(report, "free", costs)
    assert spent["scored at step"][0] == spent["trained steps"][0] == "300"
    assert spent["headline bits/byte"][0] == f"{1.61 / np.log(2):.4f}"
    assert [spent[f"{name} parameters"][0] for name in ("backbone", "latent", "table")] == [
        "1.23 M",
        "45.6 k",
        "0",
    ]
    assert (spent["speed tokens/s"][0], spent["memory MiB"][0]) == ("1,001", "102")


def test_intervals_are_the_public_function_s(study: StudyFolder) -> None:
    """Headline, difference, excess and worth, over seeds and windows, come from `lvlm.statistics`."""
    rng = np.random.default_rng(0)
    nats: dict[str, list[dict[str, Any]]] = {"baseline": [], "free": []}
    for seed in range(3):
        for arm in nats:
            folder = study.add(arm, seed, 1.5, kl=0.5 if arm == "free" else None, oracle=1.4)
            nats[arm].append(study.jitter(folder, rng))
    free, control = nats["free"], nats["baseline"]
    row = study.read().rows[1]

    def stacked(runs: list[dict[str, Any]], name: str) -> Any:
        return np.stack([run[name] for run in runs])

    iwae = stacked(free, "nll_iwae_16")
    assert row.headline == paired_interval(iwae, TARGETS)
    assert row.differences["baseline"] == paired_interval(iwae - stacked(control, "nll_exact"), TARGETS)
    assert row.excess == paired_interval(iwae - stacked(free, "nll_oracle"))
    assert row.worth == paired_interval(stacked(free, "ce_prior") - stacked(free, "ce_posterior"), TARGETS)
    assert row.over_control["elbo"].value == pytest.approx(
        (stacked(free, "elbo") - stacked(control, "nll_exact")).mean(0).sum() / TARGETS.sum()
    )


def test_an_arm_has_one_row_and_one_verdict_whatever_becomes_of_its_seeds(usual: StudyFolder) -> None:
    """Seeds that don't read their codes count like the others, and are told beside the verdict."""
    report = usual.read()
    assert [row.arm for row in report.rows] == ["baseline", "free", "vae"]
    row = cells(report, "vae")
    assert row["headline nats/token"][0] == "1.4100"
    assert row["read seeds"] == ("2 of 3", "[0.09, 0.99]")
    (verdict,) = [verdict for verdict in verdicts(report) if verdict.label == "vae"]
    assert verdict.word == "better"
    assert "Codes are read in 2 of 3 seeds." in verdict.text


def test_excess_over_the_oracle_is_per_sequence(study: StudyFolder) -> None:
    for seed in range(3):
        study.add("baseline", seed, 1.5, oracle=1.4)
        study.add("leak", seed, 1.3, kl=0.5, oracle=1.4)
    report = study.read()
    assert cells(report, "baseline")["excess nats/sequence"][0] == "+2.000"  # 0.1 nats x 20 tokens a window
    assert "nll_oracle" not in [header.text for header in comparison(report).headers]


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_arm_below_the_oracle_is_told_even_of_one_seed(study: StudyFolder, seeds: int) -> None:
    """No model's mean is below it, so other trainings don't matter; where windows disagree it isn't sure."""
    for seed in range(seeds):
        study.add("baseline", seed, 1.5, oracle=1.4)
        for arm, gaps in (("leak", [-1.0, -1.1]), ("unsure", [1.0, -1.8])):
            nats = study.nats(study.add(arm, seed, 1.4, kl=0.5, oracle=1.4))
            study.rewrite(arm, seed, nll_iwae_16=nats["nll_oracle"] + np.array(gaps))
    (told,) = banners(study.read())
    assert "leak is below the oracle by" in told


def test_several_controls_have_a_column_each_and_the_first_gives_the_verdict(study: StudyFolder) -> None:
    for seed in range(3):
        study.add("baseline", seed, 1.5)
        study.add("baseline_plus_one", seed, 1.3)
        study.add("free", seed, 1.4, kl=0.5)
    report = study.read(("baseline", "baseline_plus_one"))
    row = cells(report, "free")
    assert row["over baseline nats/token"][0] == "-0.1000"
    assert row["over baseline_plus_one nats/token"][0] == "+0.1000"
    assert cells(report, "baseline_plus_one")["over baseline nats/token"][0] == "-0.2000"
    assert [(verdict.label, verdict.word) for verdict in verdicts(report)] == [
        ("baseline_plus_one", "better"),
        ("free", "better"),
    ]


def test_seeds_that_the_control_lacks_are_compared_unpaired(study: StudyFolder) -> None:
    for seed in range(3):
        study.add("baseline", seed, 1.5 + 0.01 * seed)
        study.add("free", seed + 2, 1.4 + 0.01 * seed, kl=0.5)
    gap = study.read().rows[1].differences["baseline"]
    assert gap is not None
    assert gap.value == pytest.approx(-0.1)
    assert gap.low < -0.11


def test_headlines_that_each_seed_chose_are_averaged(study: StudyFolder) -> None:
    """Each is a bound by itself, so their mean is one."""
    for seed, name in enumerate(["nll_iwae_16", "elbo", "elbo"]):
        study.add("baseline", seed, 1.5)
        study.add("free", seed, 1.4, kl=0.5, headline=name)
    row = cells(study.read(), "free")
    assert row["headline nats/token"][0] == f"{(1.4 + 1.6 + 1.6) / 3:.4f}"
    assert row["estimator"] == ("lowest", "nll_iwae_16 (1), elbo (2)")
    marks = {cells[1]: cells[0].text for cells in diagnostics(study.read()).rows}
    assert ("elbo", "headline of 2") in marks


def test_console_shows_the_rows_of_the_page(usual: StudyFolder) -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(comparison_table(usual.read()))
    text = console.export_text()
    for row in comparison(usual.read()).rows:
        assert row[0].text in text
        assert row[1].text in text
        assert row[1].detail in text
    assert "ce_posterior" not in text


@pytest.mark.parametrize(
    ("terminal", "width", "widest"), [(True, 100, 100), (True, 140, 140), (False, 80, 150), (False, 160, 160)]
)
def test_printed_table_fits_and_loses_no_word(
    study: StudyFolder, terminal: bool, width: int, widest: int
) -> None:
    """A file, whatever its width, has room for all."""
    for seed in range(3):
        study.add("baseline", seed, 1.5, oracle=1.3)
        study.add("an-arm-of-some-length", seed, 1.6, kl=0.5, oracle=1.3)
    console = Console(width=width, force_terminal=terminal, file=io.StringIO(), record=True)
    assert report_study(study.read(), console) == study.out / "report.html"
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= widest
    assert "…" not in text
    assert all(word in text for word in ("nats/sequence", "nll_iwae_16", "1.6000", "3 of 3", "+0.3000"))


# ---- words
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "seeds", "exact", "word"),
    [
        (-0.2, -0.1, 3, False, "better"),
        (-0.2, -0.1, 3, True, "better"),
        (-0.2, 0.1, 3, False, "not distinguishable"),
        (-0.2, 0.0, 3, True, "not distinguishable"),
        (0.0, 0.0, 3, True, "not distinguishable"),
        (0.1, 0.2, 3, True, "worse"),
        (0.1, 0.2, 3, False, "cannot say"),
        (-0.2, -0.1, 2, True, "too few seeds"),
        (-math.inf, math.inf, 1, True, "too few seeds"),
    ],
)
def test_words_of_verdicts(low: float, high: float, seeds: int, exact: bool, word: str) -> None:
    gap = Interval((low + high) / 2 if math.isfinite(low) else -0.3, low, high)
    assert word_of(gap, seeds=seeds, exact=exact, diverged=False) == word
    assert word_of(gap, seeds=seeds, exact=exact, diverged=True) == "cannot say"
    assert word_of(None, seeds=seeds, exact=exact, diverged=False) == "cannot say"


def test_verdicts_claim_no_more_than_a_bound_allows(usual: StudyFolder) -> None:
    for seed in range(3):
        usual.add("same", seed, 1.5 + 0.01 * seed, kl=0.5)
        usual.add("bigger", seed, 1.55 + 0.01 * seed)
    report = usual.read()
    found = {verdict.label: verdict for verdict in verdicts(report)}
    above = "can't be judged: nll_iwae_16 is an upper bound, and the headline lies above baseline by 0.1000 nats/token, "
    assert found["free"].text.startswith(f"{above}95 % interval [+0.1000, +0.1000], 3 seeds.")
    assert (found["free"].word, found["free"].tone) == ("cannot say", "open")
    assert (found["vae"].word, found["vae"].tone) == ("better", "better")
    assert "the model itself may be better still" in found["vae"].text
    assert found["same"].tone == "open"
    assert found["same"].text.startswith("is not distinguishable from baseline: difference +0.0000")
    assert (found["bigger"].word, found["bigger"].tone) == ("worse", "worse")
    assert "bound" not in found["bigger"].text
    assert "baseline" not in found


@pytest.mark.parametrize(("arm", "control"), [(1, 3), (3, 1), (2, 3), (3, 2)])
def test_fewer_than_three_seeds_get_no_verdict_and_no_colour(
    study: StudyFolder, arm: int, control: int
) -> None:
    """However far the arms lie apart; the sentence itself says so, and one seed has no interval."""
    for seed in range(control):
        study.add("baseline", seed, 1.5)
    for seed in range(arm):
        study.add("free", seed, 0.5, kl=0.5)
    report = study.read()
    (verdict,) = verdicts(report)
    assert (verdict.word, verdict.tone) == ("too few seeds", "open")
    few = min(arm, control)
    assert f"gets no verdict from {'one seed' if few == 1 else '2 seeds'}" in verdict.text
    assert ("95 % interval" in verdict.text) is (few == 2)
    page = render_report(report).read_text("utf-8")
    assert 'class="better"' not in page
    assert "is better than" not in Page(page).text
    assert "inf" not in "".join(part for row in comparison(report).rows for cell in row for part in cell)


def test_no_difference_of_two_bounds(usual: StudyFolder) -> None:
    """A control whose own figure is a bound is told so, and the table shows no difference."""
    report = usual.read(("free",))
    assert all(row.differences.get("free") is None for row in report.rows)
    assert all("a difference of two bounds" in verdict.text for verdict in verdicts(report))


def test_what_is_left_of_an_arm_that_diverged_gets_no_verdict(usual: StudyFolder) -> None:
    usual.add("free", 3, float("nan"), kl=0.5)
    (verdict,) = [verdict for verdict in verdicts(usual.read()) if verdict.label == "free"]
    assert (verdict.word, verdict.tone) == ("cannot say", "open")
    assert "gets no verdict: seed 3 of free diverged" in verdict.text


def test_an_arm_that_reads_nothing_is_told_what_its_codes_cost(study: StudyFolder) -> None:
    for seed in range(3):
        study.add("baseline", seed, 1.5)
        study.add("free", seed, 1.5, kl=0.5, ce_posterior=1.8)
    (verdict,) = verdicts(study.read())
    assert verdict.text.endswith(
        "Codes are read in none of 3 seeds, and elbo pays 0.0250 nats/token of KL for them."
    )


def test_banners(study: StudyFolder) -> None:
    study.add("baseline", 0, 1.5)
    log = study.add("free", 1, 1.6, kl=0.5, step=200) / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    (study.add("free", 2, 1.6, kl=0.5) / "evaluation.json").unlink()
    study.runs.append(ReportRun("free", 3, study.out / "free" / "seed3"))
    study.add("free", 4, float("nan"), kl=0.5)
    study.add("free", 5, 1.6, kl=0.5, step=100)
    report = study.read()
    text = "\n".join(banners(report))
    assert "Trained for fewer than 300 steps: free seed 1 (200)." in text
    assert "Scored before the end of training: free seed 5 (step 100 of 300)." in text
    assert "free, seed 2 is unfinished" in text
    assert "free, seed 3 is missing" in text
    assert "free, seed 4 diverged" in text
    assert "has no evaluated run" in "\n".join(banners(study.read(("nobody",))))
    page = render_report(report).read_text("utf-8")
    assert "free, seed 2 is unfinished" in page


def test_no_banner_without_a_reason(study: StudyFolder) -> None:
    for seed in range(3):
        study.add("baseline", seed, 1.5)
        study.add("free", seed, 1.6, kl=0.5)
    assert banners(study.read()) == []


# ---- refusals
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("windows_hash", "beef", "different windows"),
        ("codec", "gpt2", "a token of one"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(
    study: StudyFolder, field: str, value: object, reason: str
) -> None:
    study.add("baseline", 0, 1.5)
    study.add("free", 0, 1.5, kl=0.5, **{field: value})
    with pytest.raises(UserError, match=f"{field} differs.*{value}: free.*{reason}.*again with"):
        study.read()


@pytest.mark.parametrize(
    "other", [{"nll_iwae_64": "Importance(k=64)"}, {"nll_iwae_16": "Importance(k=16, proposal='prior')"}]
)
def test_estimates_with_other_settings_are_refused(study: StudyFolder, other: dict[str, str]) -> None:
    study.add("baseline", 0, 1.5)
    study.add("free", 0, 1.5, kl=0.5)
    study.add("gptvae", 0, 1.5, kl=0.5, settings=other)
    with pytest.raises(UserError, match="nll_iwae was estimated in different ways.*free.*gptvae.*tighter"):
        study.read()


def test_posterior_cross_entropy_cannot_be_a_headline(study: StudyFolder) -> None:
    study.add("free", 0, 1.5, kl=0.5, headline="ce_posterior")
    with pytest.raises(UserError, match="no bound on a likelihood"):
        study.read()


def test_no_evaluated_run_is_refused(study: StudyFolder) -> None:
    with pytest.raises(UserError, match="the study has no runs"):
        study.read()
    study.runs.append(ReportRun("free", 0, study.out / "free" / "seed0"))
    with pytest.raises(UserError, match=r"free, seed 0 is missing.*Run the study first"):
        study.read()


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("evaluation.json", lambda data: data[:50]),
        ("evaluation.json", lambda _: b"[]"),
        ("evaluation.json", lambda data: data.replace(b'"windows": 2', b'"windows": "two"')),
        ("evaluation.json", lambda data: data.replace(b'"schema": 3', b'"schema": 1')),
        ("evaluation.json", lambda data: data.replace(b'"headline": "nll_exact"', b'"headline": "nll_best"')),
        ("metrics.jsonl", lambda data: data[:-5]),
        ("run.json", lambda data: data[:-1]),
        ("evaluation.npz", lambda data: data[:100]),
        ("evaluation.npz", lambda _: b""),
    ],
)
def test_corrupt_files_are_named(study: StudyFolder, name: str, harm: Callable[[bytes], bytes]) -> None:
    path = study.add("baseline", 0, 1.5) / name
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(UserError, match=re.escape(str(path))):
        study.read()


def test_files_of_two_evaluations_are_refused(study: StudyFolder) -> None:
    path = study.add("baseline", 0, 1.5) / "evaluation.npz"
    np.savez(path, targets=TARGETS, nll_exact=1.6 * TARGETS)
    with pytest.raises(UserError, match=r"1\.6000 here but 1\.5000"):
        study.read()


# ---- the page
# -------------------------------------------------------------------------------------------------


def test_page_parses_and_loads_nothing(usual: StudyFolder) -> None:
    text = usual.page()
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.seen
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    assert text.count('<svg role="img" aria-label="') == 4
    assert all(words in text for words in ("cafe", "arm: vae", "torch", "2.9", "Once ", "upon a time"))


def test_posterior_cross_entropy_stays_out_of_the_comparison(usual: StudyFolder) -> None:
    """It has its own table, which says why, and which the baseline isn't in."""
    usual.add("told", 0, 1.6, kl=0.5, ce_posterior=0.8765)
    report, page = usual.read(), Page(usual.page())
    comparing, latent = page.tables["Comparison of the arms"], page.tables["Latents"]
    assert "ce_posterior" not in comparing
    assert "0.8765" not in comparing
    assert "ce_posterior" in latent
    assert "0.8765" in latent
    assert [row[0].text for row in latents(report).rows] == [
        "free",
        "vae",
        "told",
    ]
    assert "ce_posterior has seen the answer" in usual.page()


def test_samples_and_names_are_escaped(study: StudyFolder) -> None:
    attack = "<script>alert(1)</script>\x00"
    sample = {"prompt": attack, "text": attack + "\ud800\u202e\n", "tokens": 3, "temperature": 1.0}
    study.add("baseline", 0, 1.5, sample=sample)
    study.add("_a$<b>&$", 0, 1.6, kl=0.5, sample=sample)
    text = study.page()
    page = Page(text)
    assert "script" not in page.seen
    assert "\x00" not in text
    assert "b" not in page.seen
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert '<span class="control">\\x00</span>' in text
    assert "\\ud800" in text
    assert '<span class="control">\\u202e</span>' in text


def test_every_invisible_character_is_shown() -> None:
    shown = str(visible("a\x1b[31m\x7f\x85\u200b\ufeff é漢\n\t"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]", shown)
    assert "é漢" in shown
    assert "↵\n" in shown


def test_a_study_of_baselines_alone_has_a_page(study: StudyFolder) -> None:
    """No latents table, no plane, no KL; and runs that logged nothing have no curves. Cross-entropy by
    position stays.
    """
    folder = study.add("baseline", 0, 1.5, sample=None, tokens_per_second=None, peak_memory_mib=None)
    for name in ("metrics.jsonl", "run.json", "recipe.yaml"):
        (folder / name).unlink()
    text = study.page()
    assert not {"Latents", "Diagnostics of the estimators"} & set(Page(text).tables)
    assert text.count('<svg role="img"') == 2
    assert "No run stored a sample" in text


def test_pages_are_reproducible(usual: StudyFolder) -> None:
    path = render_report(usual.read())
    assert path == usual.out / "report.html"
    first = path.read_bytes()
    render_report(usual.read())
    assert path.read_bytes() == first


# ---- files
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_figures_and_numbers_are_written_as_files(usual: StudyFolder, kind: Literal["svg", "pdf"]) -> None:
    """Figures that open by themselves, and numbers in full, which are those of the report."""
    out, report = usual.out / "a" / "b", usual.read()
    paths = write_figures(report, out, kind)
    assert {path.name for path in paths} == {path.name for path in out.iterdir()}
    assert {f"battery.{kind}", f"plane.{kind}", f"curves.{kind}", "runs.csv"} <= {path.name for path in paths}
    again = {path: path.read_bytes() for path in paths}
    assert write_figures(report, out, kind) == paths
    assert {path: path.read_bytes() for path in paths} == again
    figure = (out / f"plane.{kind}").read_bytes()
    if kind == "svg":
        root = ElementTree.fromstring(figure)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert b"#57606a" in figure
        assert b"currentColor" not in figure
    else:
        assert figure.startswith(b"%PDF")
    with (out / "comparison.csv").open(newline="") as file:
        lines = {line["arm"]: line for line in csv.DictReader(file)}
    free = report.rows[1]
    assert float(lines["free"]["headline"]) == free.headline.value
    assert float(lines["free"]["over_baseline_low"]) == free.differences["baseline"].low  # type: ignore[union-attr]
    assert lines["vae"]["verdict"] == "better"
    assert lines["baseline"]["verdict"] == lines["baseline"]["over_baseline"] == ""
    with (out / "runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(len(run.evaluation.estimates) for run in report.runs)


def test_one_seed_has_no_ends_in_a_file(study: StudyFolder) -> None:
    study.add("baseline", 0, 1.5)
    study.add("free", 0, 1.4, kl=0.5)
    write_figures(study.read(), study.out / "files")
    with (study.out / "files" / "comparison.csv").open(newline="") as file:
        (_, free) = csv.DictReader(file)
    assert (free["over_baseline_low"], free["over_baseline_high"]) == ("", "")
    assert free["verdict"] == "too few seeds"


def test_a_folder_is_reported_as_its_study_was(usual: StudyFolder) -> None:
    """Title, command and controls come from study.json; without it the control is the first arm without a
    latent.
    """
    shown = read_folder(usual.out)
    assert (shown.title, shown.controls) == (usual.out.name, ("baseline",))
    write_record(
        usual.out, StudyRecord(title="Mine", description="d", command="c", controls=["baseline", "free"])
    )
    shown = read_folder(usual.out)
    assert (shown.title, shown.command, shown.controls) == ("Mine", "c", ("baseline", "free"))
    assert read_folder(usual.out, ["vae"]).controls == ("vae",)
    with pytest.raises(UserError, match="no arm 'fre'; known: baseline, free, vae; did you mean 'free'"):
        read_folder(usual.out, ["fre"])
    (usual.out / "study.json").write_text('{"title": 3}')
    with pytest.raises(UserError, match=r"study\.json: not a study's record: title: .*; description: "):
        read_folder(usual.out)


def test_the_command_writes_the_page_and_the_files(
    usual: StudyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lvlm", "report", str(usual.out), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert report("--figures", str(usual.out / "figures"), "--format", "pdf") == 0
    shown = capsys.readouterr()
    assert shown.out == f"report: {(usual.out / 'report.html').resolve().as_uri()}\n"
    assert "nll_iwae_16" in shown.err
    assert (usual.out / "figures" / "battery.pdf").is_file()
    assert report("--figures", "x", "--format", "pgn") == 2
    assert "unknown format of figures 'pgn'; known: pdf, svg" in capsys.readouterr().err
    assert report("--figures", "") == 2
    assert report("--control", "fre") == 2
    assert "did you mean 'free'?" in capsys.readouterr().err
