"""The report over small synthetic studies: numbers by hand, refusals, banners, and a page that is safe
offline.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lvlm.errors import UserError
from lvlm.likelihood.life import is_alive
from lvlm.report import (
    Report,
    ReportRun,
    comparison_table,
    read_report,
    render_report,
    report_study,
    write_report,
)
from lvlm.report.page import visible
from lvlm.report.tables import comparison, latents
from lvlm.report.words import banners, verdicts

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
                "ce_posterior": 0.7777,
                "kl": rate,
                "elbo": nll + 0.2,
                "ce_prior": nll + 0.3,
                "nll_iwae_16": nll,
            }
        if oracle is not None:
            values["nll_oracle"] = oracle
        np.savez(
            folder / "evaluation.npz", targets=TARGETS, **{name: v * TARGETS for name, v in values.items()}
        )
        evaluation = {
            "schema": 2,
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
            "alive": None if kl is None else is_alive(kl, budget),
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

    def read(self, control: str = "baseline") -> Report:
        return read_report(
            self.out, title="A study", description="Why.", command="go", control=control, runs=self.runs
        )

    def page(self, control: str = "baseline") -> str:
        return render_report(self.read(control)).read_text("utf-8")


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


@pytest.fixture
def usual(study: StudyFolder) -> StudyFolder:
    """A baseline, a latent arm that lives, and one of which one run in three is dead."""
    for seed in range(3):
        study.add("baseline", seed, 1.5 + 0.01 * seed)
        study.add("free", seed, 1.6 + 0.01 * seed, kl=0.5)
        study.add("vae", seed, 1.4 + 0.01 * seed, kl=0.001 if seed == 1 else 0.4)
    return study


def cells(report: Report, label: str) -> dict[str, tuple[str, str]]:
    """One row of the comparison table by 'header unit'."""
    table = comparison(report)
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
        if self._table:
            self.tables[self._table] = self.tables.get(self._table, "") + data


# ---- numbers
# --------------------------------------------------------------------------------------------------


def test_table_values_by_hand(usual: StudyFolder) -> None:
    row = cells(usual.read(), "free")
    assert row["arm"] == ("free", "3 seeds")
    assert row["headline nats/token"][0] == "1.6100"
    assert row["headline bits/byte"][0] == f"{1.61 / np.log(2):.4f}"
    assert row["difference nats/token"] == ("+0.1000", "[+0.1000, +0.1000]")
    assert row["estimator"] == ("nll_iwae_16", "upper bound")
    assert [row[f"{name} nats/token"][0] for name in ("elbo", "ce_prior", "raw KL")] == [
        "1.8100",
        "1.9100",
        "0.0250",
    ]
    assert row["alive runs"] == ("3 of 3", "[0.29, 1.00]")
    assert [row[f"{name} parameters"][0] for name in ("backbone", "latent", "table")] == [
        "1.23 M",
        "45.6 k",
        "0",
    ]
    assert (row["speed tokens/s"][0], row["memory MiB"][0]) == ("1,001", "102")
    baseline = cells(usual.read(), "baseline")
    assert baseline["difference nats/token"][0] == "control"
    assert baseline["estimator"] == ("nll_exact", "exact")


def test_dead_and_living_runs_are_never_averaged(usual: StudyFolder) -> None:
    """Each half of the arm meets the control's runs of the same seeds."""
    report = usual.read()
    living, dead = cells(report, "vae (living, 2 of 3)"), cells(report, "vae (dead, 1 of 3)")
    assert living["headline nats/token"][0] == "1.4100"
    assert dead["headline nats/token"][0] == "1.4100"
    assert living["raw KL nats/token"][0] == "0.0200"
    assert dead["raw KL nats/token"][0] == "0.0001"
    assert living["difference nats/token"][0] == dead["difference nats/token"][0] == "-0.1000"
    assert living["alive runs"] == dead["alive runs"] == ("2 of 3", "[0.09, 0.99]")
    assert all(len({run.evaluation.living for run in row.runs}) == 1 for row in report.rows)


@pytest.mark.parametrize(
    ("kl", "budget", "alive"),
    [
        (0.051, 1.0, True),
        (0.049, 1.0, False),
        (0.011, None, True),
        (0.009, 0.0, False),
        (0.011, math.inf, True),
        (0.009, math.inf, False),
    ],
)
def test_alive_rule(kl: float, budget: float | None, alive: bool) -> None:
    """5 % of the budget, or 0.01 nats per slot without one or with one that has no end."""
    assert is_alive(kl, budget) is alive


def test_excess_over_the_oracle_is_per_sequence(study: StudyFolder) -> None:
    for seed in range(3):
        study.add("baseline", seed, 1.5, oracle=1.4)
        study.add("leak", seed, 1.3, kl=0.5, oracle=1.4)
    report = study.read()
    assert cells(report, "baseline")["excess nats/sequence"][0] == "+2.000"  # 0.1 nats x 20 tokens a window
    assert any("leak is below the oracle by 2.000 nats/sequence" in banner for banner in banners(report))
    assert "nll_oracle" not in [header.text for header in comparison(report).headers]


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
    ("terminal", "width", "widest", "bounds"),
    [(True, 100, 100, False), (True, 140, 140, True), (False, 80, 150, True), (False, 160, 160, True)],
)
def test_printed_table_fits_and_loses_no_word(
    study: StudyFolder, terminal: bool, width: int, widest: int, bounds: bool
) -> None:
    """A narrow terminal goes without the bounds; a file, whatever its width, has room for them."""
    for seed in range(3):
        study.add("baseline", seed, 1.5, oracle=1.3)
        study.add("an-arm-of-some-length", seed, 1.6, kl=0.5, oracle=1.3)
    console = Console(width=width, force_terminal=terminal, file=io.StringIO(), record=True)
    assert report_study(study.read(), console) == study.out / "report.html"
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= widest
    assert "…" not in text
    assert ("ce_prior" in text) is bounds
    assert all(word in text for word in ("nats/sequence", "nll_iwae_16", "1.6000", "3 of 3", "tokens/s"))


# ---- words
# ----------------------------------------------------------------------------------------------------


def test_verdicts_claim_no_more_than_a_bound_allows(usual: StudyFolder) -> None:
    for seed in range(3):
        usual.add("same", seed, 1.5 + 0.01 * seed, kl=0.5)
        usual.add("bigger", seed, 1.55 + 0.01 * seed)
    found = {verdict.label: verdict for verdict in verdicts(usual.read())}
    worse = "is worse than baseline by 0.1000 nats/token, 95 % interval [+0.1000, +0.1000]."
    assert found["free"].text.startswith(worse)
    assert "a bound worse than the control doesn't prove that the model is" in found["free"].text
    assert found["vae (living, 2 of 3)"].tone == "better"
    assert found["same"].tone == "open"
    assert found["same"].text.startswith("can't be told from baseline: difference +0.0000")
    assert found["bigger"].tone == "worse"
    assert "bound" not in found["bigger"].text
    assert "baseline" not in found


def test_no_difference_of_two_bounds(usual: StudyFolder) -> None:
    """A control whose own figure is a bound is told so, and the table shows no difference."""
    report = usual.read(control="free")
    assert all(row.difference is None for row in report.rows)
    assert all("a difference of two bounds" in verdict.text for verdict in verdicts(report))


def test_banners(study: StudyFolder) -> None:
    study.add("baseline", 0, 1.5)
    study.add("free", 0, 1.6, kl=0.01)
    log = study.add("free", 1, 1.6, kl=0.5, step=200) / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    (study.add("free", 2, 1.6, kl=0.5) / "evaluation.json").unlink()
    study.runs.append(ReportRun("free", 3, study.out / "free" / "seed3"))
    study.add("free", 4, float("nan"), kl=0.5)
    report = study.read()
    text = "\n".join(banners(report))
    assert "Fewer than three seeds: baseline: 1, free (living, 1 of 2): 1, free (dead, 1 of 2): 1" in text
    assert "Dead latent in free (dead, 1 of 2)" in text
    assert "Trained for fewer than 300 steps: free seed 1 (200)." in text
    assert "free, seed 2 is unfinished" in text
    assert "free, seed 3 is missing" in text
    assert "free, seed 4 diverged" in text
    assert "has no evaluated run" in "\n".join(banners(study.read(control="nobody")))
    page = render_report(report).read_text("utf-8")
    assert all(words in page for words in ("free, seed 2 is unfinished", "Dead latent in free"))


def test_no_banner_without_a_reason(study: StudyFolder) -> None:
    for seed in range(3):
        study.add("baseline", seed, 1.5)
        study.add("free", seed, 1.6, kl=0.5, step=100 * (seed + 1))  # the best checkpoint, not the last
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
        ("evaluation.json", lambda data: data.replace(b'"schema": 2', b'"schema": 1')),
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
    report, page = usual.read(), Page(usual.page())
    comparing, latent = page.tables["Comparison of the arms"], page.tables["Latents"]
    assert "ce_posterior" not in comparing
    assert "0.7777" not in comparing
    assert "ce_posterior" in latent
    assert "0.7777" in latent
    assert [row[0].text for row in latents(report).rows] == [
        "free",
        "vae (living, 2 of 3)",
        "vae (dead, 1 of 3)",
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
    path = write_report(
        usual.out, title="t", description="", command="c", control="baseline", runs=usual.runs
    )
    assert path == usual.out / "report.html"
    first = path.read_bytes()
    write_report(usual.out, title="t", description="", command="c", control="baseline", runs=usual.runs)
    assert path.read_bytes() == first


@pytest.mark.parametrize(("nll", "ignored"), [(0.4777, True), (1.5, False)])
def test_a_latent_that_is_paid_for_and_not_read_is_named(
    study: StudyFolder, nll: float, ignored: bool
) -> None:
    for seed in range(3):
        study.add("baseline", seed, nll)
        study.add("free", seed, nll, kl=0.2)  # ce_posterior is 0.7777, ce_prior is nll + 0.3
    assert any(banner.startswith("Ignored latent in free") for banner in banners(study.read())) is ignored
