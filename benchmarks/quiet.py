"""A stopwatch for long measurements on a machine that others use as well."""

from __future__ import annotations

import os
import time
from pathlib import Path

EVERY = 0.5  # seconds of work between two looks
BUSY = 0.15  # of one CPU: more than this is somebody at work
LONGEST = 600.0  # seconds of waiting for one calm moment

TICKS = os.sysconf("SC_CLK_TCK")
STAT = Path("/proc/stat")


def others() -> float:
    """CPU seconds since the start that were not this process's: others', and stolen ones."""
    user, nice, system, _, _, *interrupts = map(
        int, STAT.read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + sum(interrupts)) / TICKS - time.process_time()


class QuietWatch:
    """Counts seconds of work, and holds the work up while other processes use the CPUs.

    Two threads that wait for each other lose more to a third process than its share. What passes
    until it is noticed is counted. Without /proc/stat, nothing is held up.
    """

    def __init__(self) -> None:
        self.seconds = self.waited = 0.0
        self._told = STAT.exists()
        self._look()

    def _look(self) -> None:
        self._start, self._others = time.perf_counter(), others() if self._told else 0.0

    def tick(self) -> None:
        """Between two pieces of work; may wait."""
        if time.perf_counter() - self._start >= EVERY:
            self.stop()

    def stop(self) -> None:
        """Count what has passed; wait if the machine is not quiet."""
        passed = time.perf_counter() - self._start
        self.seconds += passed
        if self._told and others() - self._others > BUSY * max(passed, EVERY):
            self.waited += self._wait()
        self._look()

    @staticmethod
    def _wait() -> float:
        """Until a second passes in which others do nothing. Returns how long it took."""
        start = time.perf_counter()
        while time.perf_counter() - start < LONGEST:
            before = others()
            time.sleep(1)
            if others() - before < BUSY:
                break
        return time.perf_counter() - start
