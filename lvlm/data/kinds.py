"""Our own kinds of data, which take the route that a stranger's take."""

from __future__ import annotations

from lvlm.data.bins import BinsData
from lvlm.data.coin import CoinData
from lvlm.data.huggingface import HuggingFaceData
from lvlm.data.letters import LettersData
from lvlm.data.mixture import MixtureData
from lvlm.data.python import PythonData
from lvlm.data.text import TextData
from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register


@hookimpl
def register_data(register: Register) -> None:
    """Real text, mixtures, and synthetic data whose likelihood is known."""
    register(PythonData)
    register(TextData)
    register(BinsData)
    register(HuggingFaceData)
    register(MixtureData)
    register(LettersData)
    register(CoinData)
