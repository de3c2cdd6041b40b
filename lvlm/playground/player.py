"""A run behind the page: from what widgets say to HTML. A user's mistake becomes words on the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lvlm.errors import UserError
from lvlm.generation.encode import encode_in_windows
from lvlm.generation.kl_by_token import reading_of
from lvlm.model.latent_lm import LatentLM
from lvlm.playground import markup
from lvlm.playground.writing import Asked, Control, check_typed, control_of, write
from lvlm.report.folder import study_of
from lvlm.runs.opened import open_run
from lvlm.system.files import is_folder
from lvlm.system.records import read_values

if TYPE_CHECKING:
    from lvlm.interfaces import Codec

FIRST_TOKENS = 120  # that a page asks for when it opens


@dataclass(frozen=True)
class Player:
    """What the page shows.

    name     of the run
    step     of its checkpoint
    window   tokens of a row that the encoder read in its training
    prompt   what the page opens with
    study    the folder of the plane; None for none
    """

    model: LatentLM
    name: str
    step: int
    window: int
    prompt: str
    study: Path | None = None

    @classmethod
    def load(cls, run: Path, *, study: Path | None = None, plugin_files: tuple[str, ...] = ()) -> Self:
        """The selected checkpoint of a run; its own study's folder unless another is named.

        Raises:
            UserError: no such run, or a damaged one; no such study.
        """
        if study is not None and not is_folder(study):
            raise UserError(f"{study}: no such folder; name the one that `lvlm study --out` wrote")
        opened = open_run(run, plugin_files=plugin_files)
        data = opened.recipe.data
        return cls(
            opened.on_device(),
            str(run),
            opened.step,
            data.encoder_tokens,
            _prompt(run, data.codec),
            study or study_of(run),
        )

    @property
    def control(self) -> Control | None:
        """How codes are given; None without a latent."""
        return control_of(self.model)

    @property
    def first_tokens(self) -> int:
        """How many the page asks for when it opens."""
        assert self.model.codec is not None
        left = self.model.backbone.context + 1 - len(self.model.codec.encode(self.prompt))
        return max(1, min(FIRST_TOKENS, left, self.window))

    def about(self) -> str:
        """One line on the model."""
        what = f"{self.name}, step {self.step}; context {self.model.backbone.context} tokens; "
        control, slots = self.control, self.model.slots
        if control is None or slots is None:
            return f"{what}no latent: there are no codes to choose, and nothing to read, but it writes."
        code = {
            "bits": _some(control.count, "bit"),
            "numbers": _some(control.count, "number"),
            "index": f"one of {control.count}",
        }[control.form]
        per = {None: "the whole text", 1: "each token"}.get(slots.tokens, f"each {slots.tokens} tokens")
        return f"{what}a code is {code} for {per}."

    def write(self, **said: Any) -> Iterator[str]:
        """Fields of `Asked` as widgets say them, an emptied one as None; HTML as the texts grow."""
        try:
            for name, value in said.items():
                if value is None and name != "slot":
                    raise UserError(f"{name.replace('_', ' ')} is empty; give a number")
            yield from map(markup.written, write(self.model, Asked(**said)))
        except UserError as error:
            yield markup.told(str(error))

    def read(self, text: str) -> str:
        """A text coloured by KL, with its units."""
        try:
            check_typed(text, "text")
            return markup.reading(reading_of(encode_in_windows(self.model, text, self.window)))
        except UserError as error:
            return markup.told(str(error))

    def plane(self) -> str:
        """The rate-distortion plane."""
        return markup.plane(self.study)


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _prompt(run: Path, codec: Codec) -> str:
    """What the run's evaluation began with, or else anything that its codec can read."""
    path = run / "evaluation.json"
    try:
        sample = read_values(path).get("sample") if path.exists() else None
    except UserError:
        sample = None
    said = sample.get("prompt") if isinstance(sample, dict) else None
    for prompt in (said, "The ", codec.decode([0])):
        try:
            if isinstance(prompt, str) and codec.encode(prompt):
                return prompt
        except UserError:
            continue
    return ""
