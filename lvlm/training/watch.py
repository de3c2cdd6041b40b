"""A watch over several processes: where one hangs or is lost, the others end and say which."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, cast

from lvlm.system.world import World
from lvlm.training.signals import STOP_SIGNALS

LOST_STATUS = 75
"""The exit status of a process that gave up waiting (EX_TEMPFAIL: the same command may work)."""
SECONDS_BETWEEN_NOTES = 1.0
SECONDS_TO_STOP = 5.0
"""How long after a signal this process may take to end by itself, before it looks for those that are lost."""


class Watch:
    """A thread that notes this process's step once a second, and reads the others' notes when nothing moves.

    Args:
        world: the processes; one process alone is not watched.
        timeout_seconds: how long a step may take.
        ending: ends the process with a status; for tests.
    """

    def __init__(self, world: World, timeout_seconds: float, ending: Any = os._exit) -> None:
        self.world, self.timeout_seconds, self._ending = world, timeout_seconds, ending
        self._step, self._moved, self._number = -1, time.monotonic(), 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._told = False
        self._signals: tuple[int, int, int] | None = None  # a pipe, and the descriptor that had its place
        self._signalled: float | None = None
        if world.ranks > 1:
            assert world.store is not None
            self._listen()
            self._store: Any = cast(Any, world.store).clone()  # a connection of its own
            self._note()
            self._thread = threading.Thread(target=self._go, name="watch", daemon=True)
            self._thread.start()

    def moved(self, step: int) -> None:
        """Note progress: this process has the batch of `step`, or went on with other work."""
        self._step, self._moved = step, time.monotonic()

    def close(self) -> None:
        """Stop noting; the others learn that this process ended, and wasn't lost."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            with suppress(RuntimeError):  # the store is gone
                self._note(ended=True)
        if self._signals is not None:
            *pipe, before = self._signals
            self._signals = None
            signal.set_wakeup_fd(before)
            for end in pipe:
                os.close(end)

    def verdict(self) -> str:
        """Describe which of the other processes are lost (they leave no notes), have ended, or hang (this one
        or others are ahead of them). The process that speaks is none of them.
        """
        self._told = True
        try:
            before = self._read()
            for _ in range(3):  # and go on noting: the others may ask at the same time
                time.sleep(SECONDS_BETWEEN_NOTES)
                self._note()
            now = self._read()
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if self.world.rank == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                return f"the notes of the other processes can't be read ({reason})"
            return f"rank 0 is lost, which keeps the notes ({reason})"
        me = self.world.rank
        ended = [rank for rank in now if now[rank].get("ended") and rank != me]
        lost = self._silent(before, now)
        furthest = max(note["step"] for note in now.values())
        behind = [rank for rank, note in now.items() if note["step"] < furthest]
        behind = [rank for rank in behind if rank not in (*lost, *ended, me)]
        told = [f"{self._name(rank, now)} is lost or stopped" for rank in lost]
        told += [f"{self._name(rank, now)} has ended before" for rank in ended]
        told += [f"{self._name(rank, now)} hangs before step {furthest + 1}" for rank in behind]
        if not told and now[me]["step"] < furthest:
            return f"the other processes are alive, and wait in step {furthest + 1}"
        return "; ".join(told) or f"all {self.world.ranks} processes are alive, in step {furthest + 1}"

    def _silent(self, before: dict[int, dict[str, Any]], now: dict[int, dict[str, Any]]) -> list[int]:
        """The other processes that left no note in between, and that did not say that they end."""
        return [
            rank
            for rank, note in now.items()
            if rank != self.world.rank and note["number"] == before[rank]["number"] and not note.get("ended")
        ]

    def _listen(self) -> None:
        """Learn of signals while this process waits for the others in C++, where no handler runs."""
        with suppress(ValueError):  # not the main thread
            reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            except ValueError:
                os.close(reading)
                os.close(writing)
                raise
            self._signals = (reading, writing, before)

    def _stopped_while_others_are_lost(self) -> bool:
        """Whether this process was told to end, as torchrun does with those that survive, and can't take
        another step, since others are lost.
        """
        if self._signals is not None:
            with suppress(BlockingIOError):
                if set(os.read(self._signals[0], 4096)) & set(STOP_SIGNALS):
                    self._signalled = time.monotonic()
        if self._signalled is None or self._told or self._moved > self._signalled:
            return False
        if time.monotonic() - self._signalled < SECONDS_TO_STOP:
            return False
        before = self._read()
        for _ in range(3):
            self._closed.wait(SECONDS_BETWEEN_NOTES)
            self._note()
        return bool(self._silent(before, self._read())) and not (self._told or self._closed.is_set())

    def _name(self, rank: int, notes: dict[int, dict[str, Any]]) -> str:
        note = notes[rank]
        return f"rank {rank} (process {note['pid']} on {note['host']}, last seen in step {note['step'] + 1})"

    def _go(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_NOTES):
            try:
                self._note()
                if self._stopped_while_others_are_lost():
                    self._end(f"stopped: {self.verdict()}")
                    return
            except RuntimeError:  # the store is gone: a process that ends, or a lost rank 0
                if self._closed.wait(self.timeout_seconds):
                    return
            if time.monotonic() - self._moved > self.timeout_seconds:
                waited = f"no step was finished in {self.timeout_seconds:.0f} s (train.timeout_seconds)"
                self._end(f"{waited}: {self.verdict()}")
                return

    def _end(self, told: str) -> None:
        print(f"lvlm: {told}; go on from the newest checkpoint with --resume", file=sys.stderr, flush=True)
        self._ending(LOST_STATUS)

    def _note(self, *, ended: bool = False) -> None:
        self._number += 1
        note = {"step": self._step, "number": self._number, "host": socket.gethostname(), "pid": os.getpid()}
        note |= {"ended": True} if ended else {}
        self._store.set(f"rank {self.world.rank}", json.dumps(note))

    def _read(self) -> dict[int, dict[str, Any]]:
        return {rank: json.loads(self._store.get(f"rank {rank}")) for rank in range(self.world.ranks)}
