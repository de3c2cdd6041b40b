"""Commands that write and read with a run: sample, encode, interpolate."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lvlm.cli.codes import given_codes, slots_of
from lvlm.cli.shared import AsJSON, PluginFiles
from lvlm.cli.streams import put, say, show
from lvlm.cli.words import described_by
from lvlm.errors import OutOfDistribution, UserError
from lvlm.system.files import given_path, read_named, reading
from lvlm.system.limits import TEXT_BYTES

if TYPE_CHECKING:
    from lvlm.generation.generate import Sample
    from lvlm.model.latent_lm import LatentLM


SHOWN_OF_A_PROMPT = 20  # tokens, in a title

MOST_COLUMNS = 3  # that a terminal has room for unasked


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """A context in which warnings are lines on the standard error, printed when they come."""
    import warnings
    from unittest import mock

    def told(message: Warning | str, *_where: Any, **_how: Any) -> None:
        say(f"lvlm: {message}")

    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", told):
        warnings.simplefilter("always", OutOfDistribution)
        yield


@_warnings_as_lines()
@described_by("sample")
def sample(
    run: str,
    prompt: Annotated[list[str], typer.Option()],
    tokens: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Annotated[list[str] | None, typer.Option()] = None,
    samples: int = 1,
    share_codes: Annotated[bool, typer.Option("--share-codes")] = False,
    code_seed: int | None = None,
    prompt_codes: str = "posterior",
    latent_text: Annotated[list[str] | None, typer.Option()] = None,
    codes_of: Annotated[str | None, typer.Option(help="Take the codes of this text.")] = None,
    code: Annotated[
        str | None, typer.Option(help="An index for every slot, or 3,17,4 for the first slots.")
    ] = None,
    bits: Annotated[
        str | None, typer.Option(help="A code for every slot as bits, bit 0 first: 0110.")
    ] = None,
    vector: Annotated[str | None, typer.Option(help="A continuous code for every slot: 0.5,-1.2,…")] = None,
    codes_file: Annotated[
        str | None, typer.Option("--codes", help="Codes from a file that `lvlm encode --out` wrote.")
    ] = None,
    hold: Annotated[str | None, typer.Option(metavar="0:8|1,5")] = None,
    flip: Annotated[
        list[int] | None, typer.Option(help="Flip a bit of the codes, and show both texts; several times.")
    ] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Texts in columns.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print a single text while it is made.")] = False,
    compile: Annotated[bool, typer.Option("--compile")] = False,
    precision: str = "fp32",
    device: str = "auto",
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Continue prompts. Codes come from the prior, from another text, or from you."""
    import lvlm
    from lvlm.generation import codes as turn
    from lvlm.generation.generate import check_asked
    from lvlm.generation.options import Options
    from lvlm.runs.opened import open_run

    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or (),
        "seed": seed,
        "samples": samples,
        "share_codes": share_codes,
        "code_seed": code_seed,
        "prompt_codes": prompt_codes,
        "latent_text": latent_text or None,
        "compile": compile,
    }
    if stream and (len(prompt) * samples > 1 or as_json or flip or side_by_side):
        raise UserError("--stream shows one text while it is made: one prompt, one sample, and no other form")
    opened = open_run(run, plugin_files=plugin or [])
    outline = opened.outline  # what is wrong is said before a checkpoint is read
    given = given_codes(
        outline,
        latent_text=latent_text,
        codes_of=codes_of,
        code=code,
        bits=bits,
        vector=vector,
        codes=codes_file,
    )
    if given is not None or codes_of is not None:
        options["codes"] = 0 if given is None else given
    if hold is not None:
        options["hold"] = slots_of(hold)
    check_asked(outline, prompt, tokens, Options.of(cast(Any, options)))
    for bit in flip or ():
        turn.check_bit(outline, bit)
    model = lvlm.load(opened, **_placed(precision, device))
    if codes_of is not None:
        options["codes"] = lvlm.encode(model, codes_of, seed=seed)[0].codes
    if stream:
        _stream(model, prompt[0], tokens, options)
        return
    found = {"": lvlm.generate(model, prompt, tokens, **options)}
    if flip:
        found = {"as given" if "codes" in options else "as drawn": found[""]}
        base = [one.codes for one in next(iter(found.values())) if one.codes is not None]
        options.pop("hold", None)
        options.pop("latent_text")
        for bit in flip:
            options["codes"] = [turn.flip(model, codes_S, bit) for codes_S in base]
            found[f"bit {bit} flipped"] = lvlm.generate(model, prompt, tokens, **options)
    if as_json:
        put(json.dumps([_record(one, how) for how, group in found.items() for one in group], indent=1))
    else:
        few = len(prompt) * samples * len(found) <= MOST_COLUMNS
        _print(model, found, side_by_side=side_by_side or bool(flip and few))


@_warnings_as_lines()
@described_by("encode_text")
def encode(
    run: str,
    file: Annotated[str | None, typer.Argument(help="A text file, or - for the standard input.")] = None,
    text: str | None = None,
    written: str | None = None,
    latent: str | None = None,
    seed: int = 0,
    out: Annotated[str | None, typer.Option(help="Write codes, numbers and KL to this .npz file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    precision: str = "fp32",
    device: str = "auto",
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Show what the encoder says of a text: KL by token as colours, codes and posterior numbers as JSON or
    NumPy.
    """
    import lvlm
    from lvlm.generation.encode import codes_path, write_codes

    if out is not None:
        codes_path(given_path(out, "--out"), overwrite=overwrite)  # before anything is computed
    if (file is None) == (text is None):
        raise UserError("which text? give a file (- for the standard input) or --text")
    found = lvlm.encode_text(
        run,
        text if text is not None else _read(str(file)),
        written=written,
        latent=latent,
        seed=seed,
        plugin_files=plugin or [],
        **_placed(precision, device),
    )
    if out is not None:
        say(write_codes(found, given_path(out, "--out"), overwrite=overwrite))
    if as_json:
        put(json.dumps([one.record() for one in found], indent=1))
    elif out is None:
        from lvlm.cli.texts import reading_tables
        from lvlm.generation.kl_by_token import reading_of

        show(*reading_tables(reading_of(found)))


@_warnings_as_lines()
@described_by("lvlm.generation.interpolate:texts_between", "load")
def interpolate(
    run: str,
    one: Annotated[str, typer.Argument(metavar="A")],
    other: Annotated[str, typer.Argument(metavar="B")],
    steps: int = 5,
    how: str | None = None,
    prompt: str | None = None,
    tokens: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    precision: str = "fp32",
    device: str = "auto",
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Write texts whose codes lie between those of two texts, all with the same noise."""
    import lvlm
    from lvlm.generation.interpolate import check_between, texts_between
    from lvlm.runs.opened import open_run

    options: dict[str, Any] = {
        "prompt": prompt,
        "tokens": tokens,
        "how": how,
        "seed": seed,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    opened = open_run(run, plugin_files=plugin or [])
    check_between(opened.outline, one, other, steps, **options)  # before a checkpoint is read
    model = lvlm.load(opened, **_placed(precision, device))
    found = texts_between(model, one, other, steps, **options)
    shares = [f"{number / (steps - 1):.0%}" for number in range(steps)]
    if as_json:
        records = [_record(sample, share) for share, sample in zip(shares, found, strict=True)]
        put(json.dumps(records, indent=1))
    else:
        _print(
            model,
            {f"{share} of the way": [s] for share, s in zip(shares, found, strict=True)},
            side_by_side=False,
        )


def _stream(model: LatentLM, prompt: str, tokens: int | None, options: dict[str, Any]) -> None:
    """Print prompt and text while it is made. The prompt comes with the first piece: until then the tokens
    may change its end.
    """
    import lvlm
    from lvlm.generation.prompts import token_rows
    from lvlm.interfaces.codec import joined

    assert model.codec is not None
    (ids,), new, begun = token_rows(model, prompt), [], False
    for piece in lvlm.stream(model, [ids], tokens, **options):
        new.append(piece.token)
        if piece.text and not begun:
            put(joined(model.codec, ids, new).prompt, end="")
            begun = True
        put(piece.text, end="", flush=True)
    put("" if begun else joined(model.codec, ids, new).prompt)


def _placed(precision: str, device: str) -> dict[str, Any]:
    """How a model is loaded, as options of `lvlm.load`, which knows the words."""
    return {"precision": precision, "device": device}


def _read(file: str) -> str | bytes:
    """A file's text, unpacked; its bytes where it isn't UTF-8, which a model of bytes can read all the
    same.
    """
    from lvlm.data.files import text_in

    path = given_path(file, "the text's file")
    if file == "-":
        with reading("cannot read the standard input"):
            content = sys.stdin.buffer.read(TEXT_BYTES + 1)
        if len(content) > TEXT_BYTES:
            raise UserError(f"the standard input has more than {TEXT_BYTES:,} bytes, which is the most")
    else:
        content = read_named(path, most_bytes=TEXT_BYTES)
    content = text_in(content, path, "the text's file")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _record(sample: Sample, how: str) -> dict[str, Any]:
    return {
        "how": how or None,
        "prompt": sample.prompt,
        "prompt_text": sample.prompt_text,
        "text": sample.text,
        "tokens": sample.tokens,
        "log_prob_nats": sample.log_prob_N.tolist(),
        "codes": None if sample.codes is None else sample.codes.tolist(),
        "latents": {name: codes.tolist() for name, codes in sample.latents.items()},
        "seed": sample.seed,
        "ended_by": sample.ended_by,
    }


def _print(model: LatentLM, found: dict[str, list[Sample]], *, side_by_side: bool) -> None:
    """Texts below each other, or in columns."""
    from lvlm.cli.texts import columns

    several = len({tuple(one.prompt) for group in found.values() for one in group}) > 1
    named = [
        (_title(model, how, one, several=several), f"{one.prompt_text}{one.text}")
        for group in zip(*found.values(), strict=True)
        for how, one in zip(found, group, strict=True)
    ]
    if side_by_side and len(named) > 1:
        show(columns(named))
        return
    for name, text in named:
        if len(named) > 1:
            put(f"--- {name}")
        put(text)


def _title(model: LatentLM, how: str, sample: Sample, *, several: bool) -> str:
    from lvlm.interfaces.codec import joined

    assert model.codec is not None
    begins, goes_on = sample.prompt[:SHOWN_OF_A_PROMPT], sample.prompt[SHOWN_OF_A_PROMPT:]
    prompt = joined(model.codec, begins, goes_on).prompt
    parts = (how, repr(prompt) if several else "", f"seed {sample.seed}")
    return ", ".join(part for part in parts if part)
