"""Studies of small runs, for tests that damage them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import lvlm
from lvlm.errors import Interrupted
from tests.tiny import before_step, tiny, write_text


def make_studies(folder: Path) -> Path:
    """Two studies in a folder: `done`, whose run is trained, evaluated and steered, and `stopped`, whose run
    waits to be resumed. Returns the folder, which has their text, too.
    """
    text = write_text(folder)
    steer = {"groups": 2, "samples": 2, "sources": 2, "rows": 4}
    done = lvlm.train(
        tiny("gptvae", text, steer=steer, train={"steps": 4}), folder / "done" / "gptvae" / "seed0"
    )
    lvlm.evaluate(done)
    lvlm.steer(done)
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            lvlm.train(tiny("free", text, steer=steer), folder / "stopped" / "free" / "seed0")
    return folder
