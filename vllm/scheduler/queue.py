"""Who waits, in order, and how much may."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from vllm.config import SchedulerConfig
from vllm.scheduler.sequence import Sequence

place = attrgetter("place")


def put(sequences: list[Sequence], sequence: Sequence) -> None:
    """Insert it at its place in the order; most come last."""
    if not sequences or sequences[-1].place < sequence.place:
        sequences.append(sequence)
    else:
        insort(sequences, sequence, key=place)


class Queue:
    """`sequences` that wait, sorted. Limits count requests of which nothing has started."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.sequences: list[Sequence] = []
        self._most_requests = config.max_num_queued_reqs
        self._most_tokens = config.max_num_queued_tokens
        self._requests = self._tokens = 0

    def full(self, tokens: int) -> str | None:
        """The limit that a request with so many prompt tokens would break."""
        most = self._most_requests
        if most is not None and self._requests >= most:
            return "max_num_queued_reqs"
        most = self._most_tokens
        if most is not None and self._requests and self._tokens + tokens > most:
            return "max_num_queued_tokens"
        return None

    def add(self, sequence: Sequence) -> None:
        put(self.sequences, sequence)
        if sequence.index == 0:  # the others only wait once their request has started
            self._requests += 1
            self._tokens += sequence.length

    def remove(self, sequence: Sequence) -> None:
        self.sequences.remove(sequence)
        if sequence.index == 0:
            self._requests -= 1
            self._tokens -= sequence.length

    def check(self) -> None:
        first = [s for s in self.sequences if s.index == 0]
        assert self.sequences == sorted(self.sequences, key=place)
        assert self._requests == len(first)
        assert self._tokens == sum(s.length for s in first)
