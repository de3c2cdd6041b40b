"""`python -m lvlm`, `torchrun -m lvlm`, and the command `lvlm`.

From here on a signal ends the program with a line and with 128 + its number, whatever is under way. So this
file imports next to nothing before it says what becomes of signals.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

_process = os.getpid()
_received: list[int] = []  # signals


def main() -> NoReturn:
    """Run the command line, and exit with its status."""
    status: Any = 1
    os.register_at_fork(after_in_child=_as_ever)
    sys.unraisablehook = _unraisable
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)
    try:
        from lvlm.cli import main as command_line

        command_line()
    except SystemExit as end:
        status = end.code
    except BaseException:
        if not _received:  # a fault of the program
            raise
        _say_stopped()
    if _received and status not in (0, None):  # whatever libraries made of it
        status = 128 + _received[0]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _stop:
            signal.signal(number, _stop_at_once)  # while the interpreter goes down
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """End a command by an exception, so that it cleans up; a second signal doesn't wait for that.

    Outside a command there is nothing to clean up. An import that is interrupted breaks in ways that
    libraries put into other words, or pass over; what is half-written then, `lvlm.system.files` knows.
    """
    _received.append(number)
    if len(_received) > 1 or not _can_clean_up(frame):
        _stop_at_once(number, frame)
    from lvlm.errors import Stopped

    raise Stopped(number)


def _stop_at_once(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    delete_unfinished = getattr(sys.modules.get("lvlm.system.files"), "delete_unfinished", None)
    if delete_unfinished is not None:
        delete_unfinished()
    _say_stopped()
    os._exit(128 + number)


def _say_stopped() -> None:
    with suppress(OSError):  # nobody listens, as after a hang-up
        os.write(2, b"lvlm: stopped\n")


def _can_clean_up(frame: FrameType | None) -> bool:
    """Whether a command is under way, and no import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return False
        if frame.f_code.co_name == "invoke" and frame.f_globals.get("__name__") == "lvlm.cli.app":
            return True
        frame = frame.f_back
    return False


def _unraisable(told: Any) -> None:
    """A stop that came while an object was being deleted, where Python drops exceptions, comes again."""
    number = getattr(told.exc_value, "signal_number", None)
    if number is not None:
        _received.clear()
        again = threading.Timer(0.01, os.kill, (os.getpid(), number))  # when this hook has returned
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(told)


def _as_ever() -> None:
    """A process that was forked from this one ends by signals as any other does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (_stop, _stop_at_once):
            as_ever = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, as_ever)


if __name__ == "__main__":
    main()
