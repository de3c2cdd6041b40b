"""Preparation of data before training: tokenizers and bins."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from lvlm.arguments import checks_arguments
from lvlm.data.bins_files import beside, open_files
from lvlm.data.bins_writer import write_bins
from lvlm.data.codecs import ENDS, open_codec, tokenizers_library
from lvlm.data.documents import in_blocks, pieces_of
from lvlm.errors import UserError
from lvlm.system.files import given_path, is_folder, is_there, new_folder, write_atomically, writing
from lvlm.system.progress import Display

SMALLEST_VOCAB = 257  # all bytes and the end of a document

LARGEST_VOCAB = 2**32  # an id has 32 bits

LONGEST_WORD = 4096  # characters

_WORD = re.compile(rf"\S{{1,{LONGEST_WORD}}}+|\s{{1,{LONGEST_WORD}}}+")

REPLACED_BYTES = 3  # U+FFFD, which stands for a byte that is no UTF-8


def prepare_bins(
    inputs: Sequence[str],
    out: Path,
    *,
    tokenizer: str | None,
    field: str,
    end_of_document: str | None,
    held_out: float,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write bins to a folder beside and rename it, so that a folder of the name is always complete."""
    if not inputs:
        raise UserError("input: name files or folders to prepare")
    if not 0 < held_out <= 0.25:
        raise UserError(
            f"held_out is {held_out}; it is above 0 and at most 0.25, for validation and for test each"
        )
    with new_folder(out) as temporary:
        codec, pieces = open_codec(tokenizer), pieces_of(inputs, field)
        write_bins(pieces, temporary, codec, end=end_of_document, held_out=held_out, progress=progress)
    return out


def check_bins(folder: Path) -> None:
    """Read all bins and compare them with the manifest.

    Raises:
        UserError: a file has changed.
    """
    open_files(folder, beside(folder).manifest)


def train_bpe(
    inputs: Sequence[str],
    out: Path,
    *,
    vocab: int,
    field: str,
    overwrite: bool,
    progress: Callable[[float], None] | None = None,
    tell: Callable[[str], object] = str,
) -> Path:
    """Learn a byte-level BPE; `tell` gets a message where the result differs from the request."""
    if not inputs:
        raise UserError("input: name files or folders to learn from")
    if vocab < SMALLEST_VOCAB:
        raise UserError(
            f"vocab is {vocab}; it is at least {SMALLEST_VOCAB}: all bytes and the end of a document"
        )
    if vocab > LARGEST_VOCAB:
        raise UserError(f"vocab is {vocab}; it is at most {LARGEST_VOCAB}, as an id has 32 bits")
    if is_folder(out):
        raise UserError(f"{out}: is a folder; name a file")
    if is_there(out) and not overwrite:
        raise UserError(f"{out}: is there already; name another file, or replace it with --overwrite")
    pieces, library = pieces_of(inputs, field), tokenizers_library()
    total_bytes = sum(len(piece.content) for piece in pieces())
    if not total_bytes:
        raise UserError("input: there is no text to learn from")

    replaced_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal replaced_bytes
        done_bytes = 0
        for piece in pieces():
            for block in in_blocks(piece.content):
                text, replaced = _text(block)
                yield from with_short_words(text)
                replaced_bytes += replaced
            done_bytes += len(piece.content)
            if progress is not None:
                progress(done_bytes / total_bytes)

    bpe = library.Tokenizer(library.models.BPE())
    bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        # The library takes memory for as many as asked, though no text can give more than one for each of its
        # bytes.
        vocab_size=min(vocab, SMALLEST_VOCAB + REPLACED_BYTES * total_bytes),
        special_tokens=[ENDS[0]],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(), trainer)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, bpe.to_str(pretty=True))
    if (reached := bpe.get_vocab_size()) < vocab:
        tell(f"the text gave {reached} ids, not {vocab}: it has nothing more to merge")
    if replaced_bytes:
        tell(f"{replaced_bytes} of {total_bytes} bytes of the input are no UTF-8 and were read as U+FFFD")
    return out


def with_short_words(text: str) -> list[str]:
    """A text to learn from, cut where characters or spaces stand in a row by the thousand: the library's time
    grows with the square of a word's length. Any other text is whole.
    """
    words = text.split()
    spaces = len(text) - sum(map(len, words))
    if max(map(len, words), default=0) < LONGEST_WORD and spaces - len(words) < LONGEST_WORD:
        return [text]
    ends = [found.end() for found in _WORD.finditer(text) if len(found[0]) == LONGEST_WORD]
    return [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)]) if start < end]


def _text(content: bytes) -> tuple[str, int]:
    """A piece's text, and how many of its bytes are no UTF-8."""
    try:
        return content.decode(), 0
    except UnicodeDecodeError:
        whole_bytes = len(content.decode(errors="ignore").encode())
        return content.decode(errors="replace"), len(content) - whole_bytes


@checks_arguments
def train_tokenizer(
    inputs: Sequence[str],
    out: str | Path,
    *,
    vocab: int = 8192,
    field: str = "text",
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Learn a byte-level BPE from text; needs the extra tokenizers.

    Args:
        inputs: files and folders: .txt, .jsonl, either packed (.gz, .xz, .bz2); or a saved Hugging Face
            dataset.
        out: the file to write.
        vocab: number of ids, with those of all bytes and of the end of a document; fewer where the text
            gives no more.
        field: field of each row that holds its text.
        overwrite: replace the file.
        console: where progress is shown, and the number of ids where the text gives fewer; quiet unless
            given.

    Returns:
        The file.

    Raises:
        UserError: the input is bad, or the file exists.
        lvlm.errors.MissingLibrary: `tokenizers` isn't installed.
    """
    with Display(console or Console(quiet=True), "learning a tokenizer", 100) as display:
        return train_bpe(
            inputs,
            given_path(out, "--out"),
            vocab=vocab,
            field=field,
            overwrite=overwrite,
            progress=display.share,
            tell=display.line,
        )


@checks_arguments
def prepare_data(
    inputs: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    field: str = "text",
    end_of_document: str | None = None,
    held_out: float = 0.05,
    console: Console | None = None,
) -> Path:
    """Tokenise text once, into a folder for `kind: bins`. The text is read twice, a piece at a time.

    Args:
        inputs: as for `train_tokenizer`.
        out: a folder that isn't there yet.
        tokenizer: a tokenizer.json; bytes unless given.
        field: as for `train_tokenizer`.
        end_of_document: the token behind a document; the tokenizer's own unless given.
        held_out: the share of validation, and of test.
        console: where progress is shown; quiet unless given.

    Returns:
        The folder.

    Raises:
        UserError: the input is bad or too short, the tokenizer has no such token, or the folder exists.
        lvlm.errors.MissingLibrary: `tokenizers` or `datasets` isn't installed, and is needed.
    """
    with Display(console or Console(quiet=True), f"preparing {out}", 100) as display:
        return prepare_bins(
            inputs,
            given_path(out, "--out"),
            tokenizer=None if tokenizer is None else str(tokenizer),
            field=field,
            end_of_document=end_of_document,
            held_out=held_out,
            progress=display.share,
        )


@checks_arguments
def check_data(folder: str | Path) -> None:
    """Read all of what `prepare_data` wrote and compare it with its manifest.

    Args:
        folder: a folder that `lvlm data prepare` wrote.

    Raises:
        UserError: a file has changed.
    """
    check_bins(given_path(folder, "the folder of bins"))
