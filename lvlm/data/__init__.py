"""Where rows come from: `source.py` has the contracts, `reader.py` what a trainer iterates, most others one kind each.

`codecs.py` makes tokens of text, `documents.py` reads any input piece by piece, `rows.py` cuts tokens into rows, and
`prepare.py` is what happens once, before training.
"""

from typing import Annotated

from pydantic import Field

from lvlm.data.bins import BinsData
from lvlm.data.coin import CoinData
from lvlm.data.huggingface import HuggingFaceData
from lvlm.data.letters import LettersData
from lvlm.data.mixture import MixtureData
from lvlm.data.python import PythonData
from lvlm.data.reader import Reader, open_reader
from lvlm.data.source import DataParams, Source, Split, Windows
from lvlm.data.text import TextData
from lvlm.interfaces import Codec

PLAIN_DATA_KINDS: dict[str, type[DataParams]] = {
    cls.kind_name(): cls for cls in (PythonData, TextData, BinsData, HuggingFaceData, LettersData, CoinData)
}
"""What may be a part of a mixture."""
DATA_KINDS: dict[str, type[DataParams]] = {**PLAIN_DATA_KINDS, MixtureData.kind_name(): MixtureData}

DataUnion = Annotated[
    PythonData | TextData | BinsData | HuggingFaceData | MixtureData | LettersData | CoinData,
    Field(discriminator="kind"),
]

__all__ = [
    "DATA_KINDS",
    "PLAIN_DATA_KINDS",
    "BinsData",
    "Codec",
    "CoinData",
    "DataParams",
    "DataUnion",
    "HuggingFaceData",
    "LettersData",
    "MixtureData",
    "PythonData",
    "Reader",
    "Source",
    "Split",
    "TextData",
    "Windows",
    "open_reader",
]
