"""Decodes whose next tokens are certain go on without rows until something can happen to them.

Only where the executor can tell the future, which is in virtual time. There all that a decode does
to others in most steps is to take one token of the budget and to read its KVs, so those that coast
are two numbers. What else it does, it does at points that are known beforehand:

    coasts | fills its block, which is published | needs the next | coasts | ... | ends, and wakes

When somebody asks for blocks that are not there, all wake: they have their tokens, and rows again,
as if they had had them all the time.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from vllm.core.plan import Coasting, Foresight
from vllm.scheduler.sequence import Sequence

LEAST = 2  # rows that are worth it


@dataclass(slots=True)
class Sleeper:
    """Times are steps that the sleepers have taken part in."""

    sequence: Sequence
    since: int  # up to there the sequence has its tokens
    next: int  # when its block is full, or it wakes
    wake: int


@dataclass(slots=True)
class Point:
    """A sequence has come to a point, with these tokens behind what was known of it."""

    sequence: Sequence
    said: array[int]
    awake: bool


class Coast:
    """The sequences that coast."""

    def __init__(self, foresight: Foresight, block_size: int) -> None:
        self._foresight = foresight
        self._block_size = block_size
        self._steps = 0
        self._kv_tokens = 0  # keys that the next step reads
        self._asleep: dict[int, Sleeper] = {}  # by number
        self._points: list[tuple[int, int]] = []  # heap of (step, number); may be stale
        self._growing: list[Sequence] = []  # need a block before the next step; may be awake

    def __len__(self) -> int:
        return len(self._asleep)

    def takes(self, sequence: Sequence) -> bool:
        """Let it coast if it can; it is one that runs, and has had the step's token."""
        if sequence.remaining != 1 or sequence.output_len == 0 or not sequence.quiet:
            return False  # of its first token more is told than of the others
        left = min(
            sequence.request.max_tokens - sequence.output_len,
            sequence.longest - sequence.length,
        )
        if left < LEAST:
            return False
        left = min(left, self._foresight.certain(sequence.number))
        if left < LEAST:
            return False
        into = sequence.computed % self._block_size
        if into == 0:
            self._growing.append(sequence)
        wake = self._steps + left
        sleeper = Sleeper(sequence, self._steps, self._steps - into, wake)
        self._asleep[sequence.number] = sleeper
        self._kv_tokens += sequence.computed + 1
        self._set_next(sleeper)
        return True

    def _set_next(self, sleeper: Sleeper) -> None:
        sleeper.next = min(sleeper.next + self._block_size, sleeper.wake)
        heapq.heappush(self._points, (sleeper.next, sleeper.sequence.number))

    def grow(self) -> list[Sequence]:
        """Those that need a block now."""
        growing = [s for s in self._growing if s.number in self._asleep]
        self._growing = []
        return growing

    def wake(self, sequences: Iterable[Sequence] | None = None) -> list[Point]:
        """Wake these, or everybody."""
        numbers = [*self._asleep] if sequences is None else [s.number for s in sequences]
        return [self._come_to(self._asleep[number], wake=True) for number in numbers]

    def _come_to(self, sleeper: Sleeper, *, wake: bool) -> Point:
        sequence = sleeper.sequence
        said = self._foresight.foretell(sequence.number, self._steps - sleeper.since)
        sleeper.since = self._steps
        sequence.computed += len(said)
        sequence.say(said)
        if wake:
            del self._asleep[sequence.number]
            self._kv_tokens -= sequence.computed + 1
        return Point(sequence, said, wake)

    def plan(self, *, alone: bool) -> Coasting | None:
        """Their part in the next step. alone: in as many steps as can pass up to the next point."""
        if not self._asleep:
            return None
        most = 1
        if alone:
            while not self._holds(*self._points[0]):
                heapq.heappop(self._points)
            most = self._points[0][0] - self._steps
        return Coasting(len(self._asleep), self._kv_tokens, most)

    def _holds(self, step: int, number: int) -> bool:
        return number in self._asleep and self._asleep[number].next == step

    def done(self, steps: int) -> list[Point]:
        """So many steps have passed; who has come to a point, by their places in the order."""
        self._steps += steps
        self._kv_tokens += steps * len(self._asleep)
        points = []
        while self._points and self._points[0][0] <= self._steps:
            step, number = heapq.heappop(self._points)
            if not self._holds(step, number):
                continue
            sleeper = self._asleep[number]
            point = self._come_to(sleeper, wake=step == sleeper.wake)
            points.append(point)
            if not point.awake:
                self._growing.append(point.sequence)
                self._set_next(sleeper)
        points.sort(key=lambda point: point.sequence.place)
        return points

    def numbers(self) -> set[int]:
        return set(self._asleep)

    def check(self) -> None:
        read = 0
        for number, sleeper in self._asleep.items():
            assert sleeper.since <= self._steps < sleeper.next <= sleeper.wake
            assert (sleeper.next, number) in self._points, "nobody sleeps past a point"
            at = sleeper.sequence.computed + self._steps - sleeper.since
            full = (at + sleeper.next - self._steps) % self._block_size == 0
            assert full or sleeper.next == sleeper.wake
            read += at + 1
        assert read == self._kv_tokens
