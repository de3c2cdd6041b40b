"""Data: where rows come from. All names here are public: what a new kind of data needs, and our own kinds.

`source.py` has the contracts, `reader.py` what a trainer iterates; most others are one kind each.
`codecs.py` makes tokens of text, `documents.py` reads any input piece by piece, `rows.py` cuts tokens into
rows, and `prepare.py` makes tokenizers and bins once, before training.
"""

from lvlm.data.attributes import Attribute, text_attributes
from lvlm.data.bins import BinsData
from lvlm.data.codecs import ByteCodec, CharacterCodec
from lvlm.data.coin import CoinData
from lvlm.data.huggingface import HuggingFaceData
from lvlm.data.letters import LettersData
from lvlm.data.mixture import MixtureData
from lvlm.data.noised import NoisedData
from lvlm.data.python import PythonData
from lvlm.data.reader import Reader, open_reader
from lvlm.data.rows import TokenSource
from lvlm.data.source import DataParams, RowStream, Source, Split, StreamSource, Windows, uniforms
from lvlm.data.text import TextData
from lvlm.interfaces import Batch, Codec

__all__ = [
    "Attribute",
    "Batch",
    "BinsData",
    "ByteCodec",
    "CharacterCodec",
    "Codec",
    "CoinData",
    "DataParams",
    "HuggingFaceData",
    "LettersData",
    "MixtureData",
    "NoisedData",
    "PythonData",
    "Reader",
    "RowStream",
    "Source",
    "Split",
    "StreamSource",
    "TextData",
    "TokenSource",
    "Windows",
    "open_reader",
    "text_attributes",
    "uniforms",
]
