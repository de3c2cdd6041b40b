"""Small tokenizers of the kinds that others train, made here with the `tokenizers` library."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest

from lvlm.data.codecs import TokenizerCodec

KINDS = ("sentencepiece", "unigram", "wordpiece", "wordlevel", "bytelevel", "suffixes")

SENTENCE = "the river keeps a slow account of every stone it moves and nobody reads the book until spring"


def documents(count: int = 300) -> list[str]:
    """Sentences of a few words."""
    r = random.Random(1)
    return [
        " ".join(r.choices(SENTENCE.split(), k=r.randint(5, 30))).capitalize() + "." for _ in range(count)
    ]


def _made(kind: str) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special: dict[str, Any] = {"show_progress": False, "special_tokens": ["<unk>", "</s>"]}
    if kind == "sentencepiece":  # a space in front of every word but the first, bytes for what is unknown
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        parts = (decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse())
        made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        special["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
        return made, trainers.BpeTrainer(vocab_size=500, **special)
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        return made, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **special)
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        return made, trainers.WordPieceTrainer(vocab_size=150, **special)
    if kind == "wordlevel":  # without a decoder: spaces between all tokens
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        return made, trainers.WordLevelTrainer(**special)
    if kind == "bytelevel":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        return made, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, **special)
    assert kind == "suffixes", kind  # a mark at the end of a word
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>")
    return made, trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", **special)


@functools.cache
def tokenizer_json(kind: str) -> str:
    """The content of a tokenizer.json of a kind; the test is skipped without the library."""
    pytest.importorskip("tokenizers")
    made, trainer = _made(kind)
    made.train_from_iterator(documents(), trainer)
    return str(made.to_str())


def codec_of(kind: str) -> TokenizerCodec:
    """The codec of a kind."""
    content = tokenizer_json(kind)
    from tokenizers import Tokenizer

    return TokenizerCodec(Tokenizer.from_str(content), content.encode())


def write_tokenizer(kind: str, path: Path) -> Path:
    """A kind's tokenizer.json as a file."""
    path.write_text(tokenizer_json(kind))
    return path


def write_documents(path: Path) -> Path:
    """The documents as a text, one a line."""
    path.write_text("".join(f"{one}\n" for one in documents()))
    return path
