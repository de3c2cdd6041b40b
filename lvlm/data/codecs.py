"""Text to token ids and back: UTF-8 bytes, or any tokenizer.json (Hugging Face `tokenizers`)."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lvlm.data.cuts import cut_near
from lvlm.errors import MissingLibrary, UserError, listing, nearest
from lvlm.system.files import given_path, is_file, is_folder, no_such_file, reading

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")

# How known tokenizers end a document; the first that a tokenizer has is taken.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<end_of_text>", "[SEP]")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # of tokenizers that spell unknown characters
KEPT_TOKENIZER = "the run's files/tokenizer.json"
"""Name of a tokenizer that a run keeps, in errors."""

BLOCK_BYTES = 65_536
LONGEST_BLOCK = 2**20
"""Bytes of a block whose line doesn't end; a tokenizer takes a hundred times that."""
BLOCK_TAIL = 1024
"""Bytes at the end of such a block in which it is cut."""
BLOCKS_AT_ONCE = 64
BYTES_AT_ONCE = BLOCKS_AT_ONCE * BLOCK_BYTES


class ByteCodec:
    """UTF-8 bytes as tokens."""

    vocab = 256
    name = "bytes"
    end = ord("\n")
    """The token behind a document that doesn't end in it."""

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text.

        Raises:
            UserError: for a lone surrogate, which UTF-8 cannot express.
        """
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise UserError(
                f"UTF-8 has no bytes for the character {text[error.start]!r} at position {error.start}"
            ) from None

    def arrays(self, contents: Sequence[bytes]) -> list[NDArray[Any]]:
        """The bytes of each content as ids."""
        return [np.frombuffer(content, dtype=np.uint8) for content in contents]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of bytes; what is not UTF-8 becomes U+FFFD, and what is no byte is left out."""
        return bytes(i for i in ids if i < self.vocab).decode(errors="replace")


class CharacterCodec:
    """A codec with one token per character, for synthetic data of few symbols.

    Args:
        name: name of the codec, and of the data in errors.
        symbols: the characters; a symbol's place is its id.
        known: text that names the symbols in errors.
    """

    def __init__(self, name: str, symbols: str, *, known: str | None = None) -> None:
        self.name, self.symbols, self.vocab = name, symbols, len(symbols)
        self._known = known or ", ".join(map(repr, symbols))

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            UserError: for a character that is no symbol.
        """
        for position, character in enumerate(text):
            if character not in self.symbols:
                upper = character.upper()
                near = f"; did you mean {upper!r}?" if upper in self.symbols else ""
                raise UserError(
                    f"the {self.name} data has no symbol for the character {character!r} at position"
                    f" {position}; known: {self._known}{near}"
                )
        return [self.symbols.index(character) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        return "".join(self.symbols[i] for i in ids)


class TokenizerCodec:
    """The codec of a tokenizer.json. No special token is added; one that is written out in a text is read as
    that token.

    Args:
        tokenizer: a tokenizer of the `tokenizers` library.
        content: content of the tokenizer's file.
    """

    def __init__(self, tokenizer: Tokenizer, content: bytes) -> None:
        self._tokenizer, self.content = tokenizer, content
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab = max(ids.values(), default=-1) + 1
        self.name = f"tokenizer {hashlib.sha256(content).hexdigest()[:16]}"
        self.end: int | None = next((ids[token] for token in ENDS if token in ids), None)
        self._falls_back = b'"ByteFallback"' in content
        self._ends_bytes = set(ids.values()) - {ids[token] for token in BYTES if token in ids}

    def id_of(self, token: str) -> int:
        """The id of a token.

        Raises:
            UserError: the tokenizer has no such token.
        """
        found = self._tokenizer.token_to_id(token)
        if found is None:
            known = self._tokenizer.get_vocab(with_added_tokens=True)
            raise UserError(f"the tokenizer has no token {token!r}{nearest(token, known)}")
        return int(found)

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        whole = text.encode(errors="replace").decode()  # a lone surrogate is no text
        return list(self._tokenizer.encode(whole, add_special_tokens=False).ids)

    def arrays(self, contents: Sequence[bytes]) -> list[NDArray[Any]]:
        """The ids of each text, on all cores; U+FFFD for what is not UTF-8."""
        texts, dtype = [content.decode(errors="replace") for content in contents], id_type(self.vocab)
        return [
            np.array(one.ids, dtype) for one in self._tokenizer.encode_batch(texts, add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens too; an id that the tokenizer doesn't have is left out."""
        listed = list(ids)  # of none, a decoder that strips spaces on the right would panic
        return str(self._tokenizer.decode(listed, skip_special_tokens=False)) if listed else ""

    def unsettled(self, ids: Sequence[int]) -> int:
        """How many of the last ids are bytes in a row: one more that makes them no UTF-8 turns the text of
        all of them into U+FFFD.
        """
        if not self._falls_back:
            return 0
        return next((n for n, token in enumerate(reversed(ids)) if token in self._ends_bytes), len(ids))


TextCodec = ByteCodec | TokenizerCodec
"""The codecs of real text."""


def open_codec(tokenizer: str | Path | None) -> TextCodec:
    """The codec of a tokenizer.json; that of bytes for None.

    Raises:
        UserError: there is no such file, or it holds no tokenizer.
        MissingLibrary: `tokenizers` isn't installed.
    """
    if tokenizer is None:
        return ByteCodec()
    path = given_path(tokenizer, "the tokenizer's file")
    if is_folder(path):
        path /= "tokenizer.json"
    if not is_file(path):
        said = f"tokenizer {str(tokenizer)!r}: cannot be read: {no_such_file(path)}"
        raise UserError(f"{said}; `lvlm tokenizer train` makes one")
    with reading(f"tokenizer {str(tokenizer)!r}: cannot be read"):
        return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> TokenizerCodec:  # noqa: ARG001  a file that was changed is read anew
    return codec_of_content(path.read_bytes(), str(path))


@functools.lru_cache(maxsize=8)
def codec_of_content(content: bytes, where: str) -> TokenizerCodec:
    """The codec of a tokenizer.json that was read already.

    Args:
        content: of the file; its sha256 is the codec's name.
        where: the file's name, for errors.

    Raises:
        UserError: it holds no tokenizer.
        MissingLibrary: `tokenizers` isn't installed.
    """
    library = tokenizers_library()
    try:
        tokenizer = library.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library knows no narrower one
        raise UserError(f"{where}: not a tokenizer.json: {str(error).splitlines()[0]}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return TokenizerCodec(tokenizer, content)


def tokenizers_library() -> Any:
    """The module `tokenizers`.

    Raises:
        MissingLibrary: it isn't installed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        import tokenizers
    except ImportError as error:
        raise MissingLibrary.of("tokenizers", "tokenizers") from error
    return tokenizers


def end_of(codec: TextCodec, said: str | None) -> int:
    """The id that stands behind a document: that of the given token, else the tokenizer's own.

    Raises:
        UserError: there is no such token.
    """
    if said is not None:
        if isinstance(codec, ByteCodec):
            raise UserError(
                "bytes end a document with a line break; an end of document goes with a tokenizer"
            )
        return codec.id_of(said)
    if codec.end is None:
        raise UserError(
            f"the tokenizer has none of the known ends of a document ({listing(ENDS)}); say which token "
            f"ends one"
        )
    return codec.end


def id_type(vocab: int) -> str:
    """The narrowest of uint8, uint16 and uint32 for ids 0..vocab-1."""
    return next(name for name in ("uint8", "uint16", "uint32") if vocab <= np.iinfo(name).max + 1)


def blocks(content: bytes) -> Iterator[bytes]:
    """A long text in pieces of about 64 KiB that end at line breaks, so that all cores can tokenise it. A
    line of more than `LONGEST_BLOCK` bytes is cut.
    """
    start = 0
    while start < len(content):
        line_end = content.find(b"\n", start + BLOCK_BYTES, start + LONGEST_BLOCK)
        end = line_end + 1 if line_end >= 0 else start + end_of_block(content[start : start + LONGEST_BLOCK])
        yield content[start:end]
        start = end


def end_of_block(content: bytes) -> int:
    """Where a block ends that starts with these bytes and holds no line break where one is looked for: in
    front of the last space near the end, else between two characters.

    Args:
        content: `LONGEST_BLOCK` bytes; fewer where the text ends with them.
    """
    if len(content) < LONGEST_BLOCK or content.endswith(b"\n"):
        return len(content)
    tail = len(content) - BLOCK_TAIL
    space = content.rfind(b" ", tail)
    return space if space > 0 else cut_near(content, tail, 0)


def at_once(blocks: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """As many blocks at a time as all cores have work with, and no more.

    Args:
        blocks: of a text.
        size: bytes of one.
    """
    some, held = list[T](), 0
    for block in blocks:
        some.append(block)
        held += size(block)
        if held >= BYTES_AT_ONCE or len(some) >= BLOCKS_AT_ONCE:
            yield some
            some, held = [], 0
    if some:
        yield some


def tokens_of(codec: TextCodec, content: bytes) -> NDArray[Any]:
    """The ids of a long text, tokenised in `blocks`."""
    if isinstance(codec, ByteCodec):
        return np.frombuffer(content, dtype=np.uint8)
    arrays = [np.empty(0, id_type(codec.vocab))]
    for some in at_once(blocks(content), len):
        arrays += codec.arrays(some)
    return np.concatenate(arrays)
