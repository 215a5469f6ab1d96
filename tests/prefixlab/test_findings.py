"""What the original study found comes out here, on the simulator's made-up workloads."""

from __future__ import annotations

import statistics

import pytest

from experiments.prefixlab.study import LISTED, MIXED, Words, changed, rate, stream, workload
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.view import View, view

SEEDS = range(3)


def alone(name: str, think: float) -> View:
    return view(workload(name, 16, Words(), seed=1, think=think), "engine")


@pytest.mark.parametrize("name", ["chat_single", "summarization"])
def test_single_turns_share_next_to_nothing(name: str) -> None:
    assert rate(alone(name, 5.0), OPTIMAL, MIXED) < 0.01


@pytest.mark.parametrize(("name", "least"), [("chat_multi", 0.55), ("qa", 0.75)])
def test_turns_and_shared_contexts_reuse_most_and_lru_is_like_fifo(name: str, least: float) -> None:
    """One conversation after the other, as the study asked them."""
    seen = alone(name, 0.01)
    lru, fifo = rate(seen, "lru", MIXED), rate(seen, "fifo", MIXED)
    assert lru > least
    assert lru == pytest.approx(fifo, abs=0.01)


def leads(views: list[View], policy: str, capacity: int) -> list[float]:
    return [rate(seen, policy, capacity) - rate(seen, "lru", capacity) for seen in views]


def test_in_the_mixture_knowing_workloads_pays_and_fifo_is_below_lru() -> None:
    views = [stream("arrival", seed) for seed in SEEDS]
    for policy in (LISTED, "workload", "quota"):
        assert min(leads(views, policy, MIXED)) > 0.02
    assert -0.04 < statistics.mean(leads(views, "fifo", MIXED)) < 0
    for policy in (LISTED, "quota"):  # all that anybody uses again fits
        assert leads(views[:1], policy, 8192) == [0.0]


def test_a_list_that_has_become_wrong_is_far_below_lru_and_what_learns_is_not() -> None:
    views = [changed(seed) for seed in SEEDS]
    assert max(leads(views, LISTED, 512)) < -0.3
    assert min(leads(views, "workload", 512)) > -0.02
