"""Where rows come from: `source.py` has the contracts, the other files one kind each."""

from typing import Annotated

from pydantic import Field

from lvlm.data.coin import CoinData
from lvlm.data.letters import LettersData
from lvlm.data.python import PythonData
from lvlm.data.reader import Reader, open_reader
from lvlm.data.source import Codec, DataParams, Source, Split, Windows
from lvlm.data.text import TextData

DATA_KINDS: dict[str, type[DataParams]] = {
    cls.kind_name(): cls for cls in (PythonData, TextData, LettersData, CoinData)
}

DataUnion = Annotated[PythonData | TextData | LettersData | CoinData, Field(discriminator="kind")]

__all__ = [
    "DATA_KINDS",
    "Codec",
    "CoinData",
    "DataParams",
    "DataUnion",
    "LettersData",
    "PythonData",
    "Reader",
    "Source",
    "Split",
    "TextData",
    "Windows",
    "open_reader",
]
