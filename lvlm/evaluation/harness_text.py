"""Text of lm-evaluation-harness as tokens: the rules of the harness, and what it leaves to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from lm_eval.api.model import TemplateLM

from lvlm.data import Codec
from lvlm.errors import UserError


class HarnessText(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """Tokens of the harness's requests.

    `merged` counts continuations whose tokens begin inside the last token of their context.

    Args:
        codec: text to token ids and back.
        document_end: the token that ends a document; the codec's own unless given.
        prefix: the token in front of a text without a context; the end of a document unless given, and the
            newline where there is none.
    """

    backend = "causal"

    def __init__(self, codec: Codec, *, document_end: int | None, prefix: int | None) -> None:
        super().__init__()
        self.codec, self.merged = codec, 0
        self._end: int | None = getattr(codec, "end", None) if document_end is None else document_end
        self._prefix = self._end if prefix is None else prefix
        if self._prefix is None:
            self._prefix = newline(codec)

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a document and stands for nothing else; None where a document ends in text."""
        return self._end if self._end is not None and _is_mark(self.codec, self._end) else None

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without a context.

        Raises:
            UserError: the codec has none that could be it.
        """
        if self._prefix is None:
            raise UserError(
                f"a text without a context follows the end of a document, or a newline, and the codec "
                f"({self.codec.name}) has neither; give each text a context"
            )
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """The codec's name. The harness asks for it where it applies a chat template.

        Raises:
            UserError: always, since there is no template.
        """
        _no_chat()

    def chat_template(self, chat_template: bool | str = False) -> str:
        """No template, if none is asked for.

        Raises:
            UserError: one is.
        """
        return _no_chat() if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Refuse, since models of the zoo are trained on plain text.

        Raises:
            UserError: always.
        """
        _no_chat()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; none are added to it."""
        return self.codec.encode(string)

    def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
        """The text of ids."""
        return self.codec.decode(tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context, at least one, and of its continuation: the harness's, and what it leaves open.

        The harness moves spaces at the end of a context to the continuation, encodes both as one text, and
        splits it behind as many tokens as the context alone has.

        - A context without tokens: the prefix stands for it. A continuation that begins with the prefix is
          scored behind it, unless the prefix is text of its own.
        - No token is left for the continuation, since all of it merged with the context: it is encoded by
          itself.

        Raises:
            UserError: the continuation has text and no tokens, so that any model would be sure of it.
        """
        whole = self.tok_encode(context + continuation)
        prompt, text = super()._encode_pair(context, continuation) if context else ([], whole)
        if continuation and not text:
            text = self.tok_encode(continuation)
            if not text:
                raise UserError(f"the choice {continuation!r} has no tokens: {self.codec.name} forgets it")
        if prompt:
            self.merged += prompt + text != whole
            return prompt, text
        prefix = self.prefix_token_id
        if len(text) > 1 and text[0] == prefix and _is_mark(self.codec, prefix):
            return text[:1], text[1:]
        return [prefix], text


def newline(codec: Codec) -> int | None:
    """The token of a newline; None where the codec drops it, or has no symbol for it."""
    try:
        ids = codec.encode("\n")
    except UserError:
        return None
    return ids[-1] if ids and codec.decode(ids[-1:]) == "\n" else None


def _is_mark(codec: Codec, token: int) -> bool:
    """Whether a token stands between texts alone, such as <|endoftext|>, and isn't text itself, as a newline
    is.
    """
    return bool(codec.decode([token]).strip())


def _no_chat() -> NoReturn:
    raise UserError("models of the zoo are trained on plain text and have no chat template; leave it out")
