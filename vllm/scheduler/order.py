"""The rules that sort the queues, as pure functions: smaller runs first, is preempted last.

A sequence's place never changes: one that was preempted keeps it.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.core.request import EngineRequest

Place = tuple[float, ...]
Order = Callable[[EngineRequest, int], Place]


def fcfs(request: EngineRequest, number: int) -> Place:
    """First come, first served."""
    return (request.arrival, number)


def priority(request: EngineRequest, number: int) -> Place:
    """Lower priority values first, then first come."""
    return (request.priority, request.arrival, number)


ORDERS: dict[str, Order] = {"fcfs": fcfs, "priority": priority}
