"""The store's daemon, for tests: in a thread, whose index can be checked, or as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.kvstore.native import library


class InThread:
    """A daemon of this process. `check()` looks at its invariants at any moment."""

    def __init__(self, socket: Path, size: int, slot_bytes: int = 0) -> None:
        self.socket = socket
        self.server: Any = library().Server(str(socket), size, slot_bytes)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.server.run(0.01)

    def check(self) -> None:
        self.server.check()

    def stat(self) -> dict[str, int]:
        stat: dict[str, int] = self.server.stat()
        return stat

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self.server = None


@contextmanager
def in_thread(folder: Path, size: int = 1 << 20, slot_bytes: int = 0) -> Iterator[InThread]:
    daemon = InThread(folder / "run" / "kv.sock", size, slot_bytes)
    try:
        yield daemon
        if daemon.server:
            daemon.check()
    finally:
        daemon.stop()


class Process:
    """`vllm kvstore serve`."""

    def __init__(
        self, socket: Path, size: str = "1M", *more: str, inside: tuple[str, ...] = ()
    ) -> None:
        command = [*inside, sys.executable, "-m", "vllm.entrypoints.cli.main", "kvstore", "serve"]
        self.process = subprocess.Popen(
            [*command, "--socket", str(socket), "--size", size, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()  # it serves, or it has ended

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, self.errors = self.process.communicate(timeout=20)
        return self.process.returncode


@contextmanager
def process(socket: Path, size: str = "1M", *more: str) -> Iterator[Process]:
    daemon = Process(socket, size, *more)
    try:
        yield daemon
    finally:
        daemon.stop()


def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
