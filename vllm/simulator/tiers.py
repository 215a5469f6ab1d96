"""Tiers that take time instead of space: what they hold is a set of keys."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable

from vllm.core.clock import Clock
from vllm.kv.lane import Job
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover
from vllm.simulator.clock import VirtualClock


class ModelledTier:
    """Holds keys without their bytes; a read or write fails with probability `failure`."""

    in_memory = True

    def __init__(self, name: str, page: memoryview, *, failure: float, seed: int) -> None:
        self.name = name
        self.damaged = 0
        self._page = page  # what every block's bytes look like
        self._keys: set[Key] = set()
        self._failure = failure
        self._random = random.Random(f"{seed} {name}")

    def contains(self, keys: list[Key]) -> list[bool]:
        return [key in self._keys for key in keys]

    def read(self, key: Key, buffer: memoryview) -> bool:
        return key in self._keys and not self._fails()

    def write(self, key: Key, buffer: memoryview) -> None:
        if self._fails():
            raise OSError("a failure that was asked for")
        self._keys.add(key)

    def delete(self, key: Key) -> None:
        self._keys.discard(key)

    def view(self, key: Key) -> memoryview | None:
        return self._page if key in self._keys else None

    def close(self) -> None:
        self._keys.clear()

    def _fails(self) -> bool:
        return self._failure > 0 and self._random.random() < self._failure


class ModelledMover(Mover):
    """Jobs end when their bytes would have passed; a tier's jobs pass one after the other.

    block_bytes: what each buffer stands for. bandwidths: bytes a second by tier.
    """

    def __init__(
        self,
        tiers: list[ModelledTier],
        bandwidths: dict[str, float],
        block_bytes: int,
        clock: Clock,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(list(tiers), threads=0, asynchronous=True, clock=clock)
        self._bandwidths, self._block_bytes, self._sleep = bandwidths, block_bytes, sleep
        self._free_at = dict.fromkeys(bandwidths, 0.0)
        self._ends: list[tuple[float, int, float, Job]] = []  # end, order, beginning
        self._order = itertools.count()

    def submit(self, job: Job) -> None:
        super().submit(job)
        now = self._clock()
        seconds = len(job.keys) * self._block_bytes / self._bandwidths[job.tier]
        begin = max(now, self._free_at[job.tier])
        self._free_at[job.tier] = begin + seconds
        heapq.heappush(self._ends, (begin + seconds, next(self._order), begin, job))

    def poll(self) -> tuple[list[Job], list[Job]]:
        self._end_due()
        for _, _, begin, job in self._ends:
            if begin <= self._clock() and job.begun is None and not job.withdrawn:
                self.lanes[job.tier].jobs.begin(job, begin)
        return super().poll()

    def wait(self, seconds: float) -> None:
        """Let time pass up to the end of the next transfer, at most so long."""
        if self._ends:
            seconds = min(seconds, max(0.0, self._ends[0][0] - self._clock()))
        self._sleep(seconds)
        self._end_due()

    def _end_due(self) -> None:
        while self._ends and self._ends[0][0] <= self._clock():
            end, _, begin, job = heapq.heappop(self._ends)
            if job.withdrawn:
                continue
            lane = self.lanes[job.tier]
            if job.begun is None:
                lane.jobs.begin(job, begin)
            self._carry_out(lane, job)
            job.ended = end


def sleeper(clock: Clock) -> Callable[[float], None]:
    return clock.sleep if isinstance(clock, VirtualClock) else time.sleep
