"""Our own kinds of data, registered as those of any plugin are."""

from __future__ import annotations

from lvlm.data.bins import BinsData
from lvlm.data.coin import CoinData
from lvlm.data.huggingface import HuggingFaceData
from lvlm.data.letters import LettersData
from lvlm.data.mixture import MixtureData
from lvlm.data.noised import NoisedData
from lvlm.data.python import PythonData
from lvlm.data.text import TextData
from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register


@hookimpl
def register_data(register: Register) -> None:
    """Register real text, mixtures, and synthetic data whose likelihood is known."""
    register(PythonData)
    register(TextData)
    register(BinsData)
    register(HuggingFaceData)
    register(MixtureData)
    register(LettersData)
    register(CoinData)
    register(NoisedData)
