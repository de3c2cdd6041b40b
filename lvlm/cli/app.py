"""The command line. Everything heavy is imported inside a command, so that `lvlm --help` is quick.

A user's mistake is told in words with exit status 2; an interrupted run exits with 128 + the signal's number,
and a study that ran to its end without some of its runs with 1.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from lvlm.cli import look, measure, write
from lvlm.cli.data import data_app, tokenizer_app
from lvlm.cli.new import new
from lvlm.cli.play import play
from lvlm.cli.shared import Overrides, PluginFiles, progress
from lvlm.cli.streams import NO_RESULT, give_up_output, is_of_output, prepare, put, say, told_at_the_end
from lvlm.cli.words import Described, described_by
from lvlm.errors import Interrupted, Remark, RunsFailed, UserError, bounded
from lvlm.system.files import given_path
from lvlm.system.plain import printable

# Before a command imports torch: threads that wait for each other sleep instead of spinning. Where another
# process wants a core, spinning makes a training step several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Commands(TyperGroup):
    """Ends every command with a message and a status, and never with a traceback of the user's own
    mistake.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with _remarks_as_lines(), _usage_in_plain_words(), told_at_the_end():
                result = super().invoke(ctx)
        except UserError as error:
            _end(2, str(error))
        except RunsFailed as error:
            _end(1, str(error))
        except Interrupted as error:
            _end(128 + error.signal_number, str(error))
        except KeyboardInterrupt as error:
            _end(128 + getattr(error, "signal_number", signal.SIGINT), "stopped")
        except BrokenPipeError:  # `lvlm kinds | head`: whoever read is gone
            give_up_output()
            sys.exit(141)
        return result

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program."""
        prepare()
        try:
            return super().main(*args, **options)
        except OSError as error:  # of the parser's own words, such as --help
            if not is_of_output(error):
                raise
            _end(2, NO_RESULT.format(reason=error.strerror))

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the options that come before a command."""
        with _usage_in_plain_words():
            return super().make_context(*args, **options)


@contextmanager
def _usage_in_plain_words() -> Iterator[None]:
    """A context in which what the parser says of wrong options is bounded, and obeyed by no terminal."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and isinstance(getattr(error, "message", None), str):
            error.message = bounded(printable(error.message))  # type: ignore[attr-defined]
        raise


@contextmanager
def _remarks_as_lines() -> Iterator[None]:
    """Warnings of ours are lines like all that the program says; those of others are shown as ever."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if issubclass(category, Remark):
            say(f"lvlm: {message}")
        else:
            before(message, category, *where, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _end(status: int, message: str) -> NoReturn:
    if message:  # another process of the same training tells
        say(f"lvlm: {message}")
    give_up_output()
    sys.exit(status)


app = typer.Typer(
    cls=Commands,
    help="A comparative zoo of latent-variable language models: compose, train, compare honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@described_by("train")
def train(
    recipe: Annotated[str | None, typer.Argument()] = None,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(show_default="runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Train a recipe into a run folder."""
    import lvlm

    if out is None and recipe is None:
        raise UserError("which recipe? name one, or go on with a run by --resume --out RUN")
    folder = _folder(out, str(recipe))
    lvlm.train(
        recipe,
        folder,
        *(overrides or []),
        resume=resume,
        overwrite=overwrite,
        plugin_files=plugin or [],
        console=progress(),
    )
    put(folder)


def _folder(out: str | None, source: str) -> Path:
    """Folder of a recipe's run or of a study."""
    if out is None:
        return Path("runs") / Path(source).stem
    return given_path(out, "--out")  # empty where it is `--out "$RUN"` of a variable that isn't set


@described_by("study")
def study(
    source: str,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(show_default="runs/NAME")] = None,
    plugin: PluginFiles = None,
) -> None:
    """Train and compare the arms of a study over its seeds; finished runs are not run again."""
    import lvlm

    folder = _folder(out, source)
    command = shlex.join(["lvlm", *sys.argv[1:]])
    try:
        page = lvlm.study(
            source, folder, *(overrides or []), plugin_files=plugin or [], console=progress(), command=command
        )
    except RunsFailed as error:
        if error.report is not None:
            _show_report(error.report)
        raise
    _show_report(page)


def _show_report(page: Path) -> None:
    put(f"report: {page.resolve().as_uri()}")


@described_by("lvlm.report.page:report_folder", control="controls", format="kind")
def report(
    out: str,
    control: Annotated[list[str] | None, typer.Option(metavar="ARM")] = None,
    figures: Annotated[str | None, typer.Option(metavar="DIR")] = None,
    format: Annotated[str, typer.Option(metavar="svg|pdf")] = "svg",
) -> None:
    """Write the report of a study's folder anew, and its figures and numbers as files."""
    from lvlm.report import report_folder

    page = report_folder(
        out,
        controls=control or [],
        figures=figures,
        kind=format,  # type: ignore[arg-type]  # checked there
        console=progress(),
    )
    put(f"report: {page.resolve().as_uri()}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from lvlm import __version__

        put(__version__)
        raise typer.Exit


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "study": study,
    "report": report,
    "eval": measure.evaluate,
    "doctor": measure.doctor,
    "steer": measure.steer,
    "lm-eval": measure.lm_eval,
    "sample": write.sample,
    "encode": write.encode,
    "interpolate": write.interpolate,
    "play": play,
    "check": look.check,
    "plan": look.plan,
    "export": look.export,
    "kinds": look.kinds,
    "plugins": look.plugins,
    "schema": look.schema,
    "new": new,
}
"""Every command, in the order of `lvlm --help`."""

for name, command in COMMANDS.items():
    app.command(name=name, cls=Described)(command)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")

main = app
