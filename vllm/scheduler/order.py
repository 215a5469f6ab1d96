"""The rules that sort the queue, as pure functions: smaller runs first, and is preempted last."""

from __future__ import annotations

from collections.abc import Callable

from vllm.scheduler.sequence import Sequence

Order = Callable[[Sequence], tuple[float, ...]]


def fcfs(sequence: Sequence) -> tuple[float, ...]:
    """First come, first served. A preempted sequence keeps its place."""
    return (sequence.request.arrival, sequence.number)


def priority(sequence: Sequence) -> tuple[float, ...]:
    """Lower priority values first, then first come."""
    return (sequence.request.priority, sequence.request.arrival, sequence.number)


ORDERS: dict[str, Order] = {"fcfs": fcfs, "priority": priority}
