"""Names of arms that no folder may have are refused before anything of a study runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.errors import UserError
from lvlm.recipe.arm_names import LONGEST_BYTES, fault_of_name
from lvlm.recipe.study import read_study
from lvlm.system.files import ignores_case
from tests.tiny import tiny, write_text

WRONG = [
    "..",
    ".",
    ".hidden",
    "end.",
    "report.html",
    "Report.HTML",
    "study.json",
    "NUL",
    "com1.txt",
    "a/b",
    "a b",
]
WRONG += ["", "a\n", "a" * (LONGEST_BYTES + 1), "é" * (LONGEST_BYTES // 2 + 1), "\\", "a:b"]


def study(tmp_path: Path, **parts: Any) -> Path:
    path = tmp_path / "study.yaml"
    base = {"study": "s", "common": tiny("free", write_text(tmp_path)), "base": "free", **parts}
    del base["common"]["extends"]
    path.write_text(json.dumps(base))
    return path


@pytest.mark.parametrize("name", WRONG)
def test_names_that_no_folder_may_have(name: str, tmp_path: Path) -> None:
    source = study(tmp_path, arms={"free": {}, name: {}})
    with pytest.raises(UserError, match="arm|too long") as told:
        lvlm.study(source, tmp_path / "out")
    assert "study.yaml:1: arms." in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["free", "a.b", "1e-3", "größer", "report.htm", "console", "-1", "a+b"])
def test_other_names_stay(name: str) -> None:
    assert fault_of_name(name, in_file=True) == ""


def test_names_that_a_grid_makes_are_checked_too(tmp_path: Path) -> None:
    values = [0, "x" * 300]
    with pytest.raises(
        UserError, match=r"grid: makes an arm 'free,name=x+'…: a name of \d+ bytes is too long"
    ):
        read_study(study(tmp_path, arms={"free": {}}, grid={"name": values}))
    names = read_study(study(tmp_path, arms={"free": {}}, grid={"name": ["..", "a/b"]})).arms
    assert names == ["free,name=..", "free,name=a_b"] and not any("/" in name for name in names)


def test_names_that_differ_in_case_alone_need_a_folder_where_case_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm.studies import run

    run.claim_study(tmp_path / "out", ["a", "A"])
    monkeypatch.setattr(run, "ignores_case", lambda _: True)
    for one, other in (("a", "A"), ("straße", "STRASSE"), ("é", "e\u0301")):
        with pytest.raises(UserError, match="differ only in case"):
            run.claim_study(tmp_path / "out", [one, "b", other])
    run.claim_study(tmp_path / "out", ["a", "b"])


def test_whether_case_counts_is_seen_by_the_folders_themselves(tmp_path: Path) -> None:
    assert not ignores_case(tmp_path / "there" / "is" / "none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "FOLDER").symlink_to("folder")  # as it looks where case doesn't count
    assert ignores_case(tmp_path / "folder" / "out")
