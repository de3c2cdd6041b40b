"""Whether a tokenizer gives a text back: where it doesn't, its tokens don't stand for the text's bytes.

A tokenizer that makes one [UNK] of every rare word, writes all in lower case or drops line breaks spends few
nats on a byte that it has forgotten. Bits per byte of such tokens compare with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from lvlm.data.codecs import ByteCodec, TextCodec, blocks

SHOWN = 24  # characters of a text, from some before the first that differs
SHOWN_BEFORE = 8


def lost_in_text(codec: TextCodec, content: bytes) -> str | None:
    """What a codec doesn't give back of a long text, tokenised in `blocks`; as `lost`."""
    if isinstance(codec, ByteCodec):
        return None
    found = (lost(codec, block, codec.arrays([block])[0]) for block in blocks(content))
    return next((one for one in found if one is not None), None)


def lost(codec: TextCodec, content: bytes, ids: NDArray[Any] | Sequence[int]) -> str | None:
    """What a codec doesn't give back of a text, in words; None where it gives back all of it.

    Args:
        codec: of the ids.
        content: the text in UTF-8.
        ids: its tokens.
    """
    if isinstance(codec, ByteCodec):
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return f"the test text is no UTF-8 at byte 0x{content[error.start]:02X}, which tokens can't say"
    back = codec.decode([int(one) for one in ids])
    if back == text:
        return None
    pairs = zip(text, back, strict=False)
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(text), len(back)))
    part = slice(max(0, place - SHOWN_BEFORE), max(0, place - SHOWN_BEFORE) + SHOWN)
    return (
        f"the tokenizer doesn't give the test text back, so its tokens don't stand for all bytes: "
        f"{text[part]!r} comes back as {back[part]!r}"
    )
