"""A watch over several processes: where one hangs or is lost, the others end and say which."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any, cast

from lvlm.system.world import World

LOST_STATUS = 75
"""The exit status of a process that gave up waiting (EX_TEMPFAIL: the same command may work)."""
SECONDS_BETWEEN_NOTES = 1.0


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
        if world.ranks > 1:
            assert world.store is not None
            self._store: Any = cast(Any, world.store).clone()  # a connection of its own
            self._note()
            self._thread = threading.Thread(target=self._go, name="watch", daemon=True)
            self._thread.start()

    def moved(self, step: int) -> None:
        """Note progress: this process has the batch of `step`, or went on with other work."""
        self._step, self._moved = step, time.monotonic()

    def close(self) -> None:
        """Stop noting."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def verdict(self) -> str:
        """Describe which processes are lost (they leave no notes) and which hang (others are ahead of
        them).
        """
        try:
            before = self._read()
            time.sleep(3 * SECONDS_BETWEEN_NOTES)
            now = self._read()
        except RuntimeError as error:
            return f"rank 0 is lost, which keeps the notes ({str(error).splitlines()[0]})"
        lost = [rank for rank in now if now[rank]["number"] == before[rank]["number"]]
        furthest = max(note["step"] for note in now.values())
        behind = [rank for rank, note in now.items() if note["step"] < furthest and rank not in lost]
        told = [f"{self._name(rank, now)} is lost or stopped" for rank in lost]
        told += [f"{self._name(rank, now)} hangs before step {furthest + 1}" for rank in behind]
        return "; ".join(told) or f"all {self.world.ranks} processes are alive, in step {furthest + 1}"

    def _name(self, rank: int, notes: dict[int, dict[str, Any]]) -> str:
        note = notes[rank]
        return f"rank {rank} (process {note['pid']} on {note['host']}, last seen in step {note['step'] + 1})"

    def _go(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_NOTES):
            try:
                self._note()
            except RuntimeError:  # the store is gone: a process that ends, or a lost rank 0
                if self._closed.wait(self.timeout_seconds):
                    return
            if time.monotonic() - self._moved > self.timeout_seconds:
                told = (
                    f"no step was finished in {self.timeout_seconds:.0f} s (train.timeout_seconds): "
                    f"{self.verdict()}"
                )
                print(
                    f"lvlm: {told}; go on from the newest checkpoint with --resume",
                    file=sys.stderr,
                    flush=True,
                )
                self._ending(LOST_STATUS)
                return

    def _note(self) -> None:
        self._number += 1
        note = {"step": self._step, "number": self._number, "host": socket.gethostname(), "pid": os.getpid()}
        self._store.set(f"rank {self.world.rank}", json.dumps(note))

    def _read(self) -> dict[int, dict[str, Any]]:
        return {rank: json.loads(self._store.get(f"rank {rank}")) for rank in range(self.world.ranks)}
