"""The engine over arrays against the real one: nothing may differ."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm import EngineArgs
from vllm.simulator import cluster, kernel
from vllm.simulator.arrays import ArrayEngine, _weights
from vllm.simulator.cluster import ROUTES, Cluster
from vllm.simulator.latency import Step, parse
from vllm.simulator.prompts import keys_of
from vllm.simulator.run import Ask, Replica, Simulation, Told, drive, engine, plain

from .test_coast import story
from .test_simulation import SMALL, TIERS, sessions

LATENCIES = [
    "constant:step=0.004",
    "linear:",
    "linear:kv=1e-6",
    "linear:step=0,prefill=0,sequence=0",
    "roofline:device=l4,compute=0.3",
    "roofline:flops=1e9,bandwidth=1e9",
]


def config(**args: Any) -> Any:
    given: dict[str, Any] = {"simulator": "random", "simulator_clock": "virtual"} | SMALL | args
    return EngineArgs(**given).create_engine_config()


def asked(seed: int, count: int, rate: float, most: int, *, ids: bool) -> list[Ask]:
    """Prompts that share beginnings; some come at once, some have a salt, some are named by ids."""
    draw, at = random.Random(seed), 0.0
    asks = []
    prompts = sessions(seed, count)
    for prompt in (p for p in prompts for _ in range(draw.choice([1, 1, 2]))):
        at += draw.choice([0.0, 0.0, draw.expovariate(rate)])
        ask = Ask(at, prompt, draw.randrange(1, most), salt=draw.choice([None, None, "other"]))
        if ids:
            chain = itertools.accumulate(prompt[::8], lambda name, token: name * 31 + token)
            ask.keys = keys_of([name % 2**60 for name in chain], len(prompt), 8)
            ask.prompt = [0] * len(prompt)
        asks.append(ask)
    return asks


def checked(replica: Replica) -> Replica:
    step = replica.step

    def looked_at(next_arrival: float | None = None, others: float = 0.0) -> list[Told]:
        told = step(next_arrival, others)
        replica.check()
        return told

    replica.step = looked_at  # type: ignore[method-assign]
    return replica


def outcome(replicas: list[Replica], asks: list[Ask], again: int) -> list[Any]:
    left = itertools.count(again, -1)

    def follow(told: Told) -> list[Ask]:
        if next(left) <= 0:
            return []
        return [Ask(told.finished + 0.01, [*told.ask.prompt, *told.tokens][:200], 17)]

    route = itertools.cycle(range(len(replicas)))
    done = drive(replicas, asks, lambda ask: next(route), follow=follow)
    return [story(done), [(r.now, r.busy_seconds, r.requests, r.tokens_ahead) for r in replicas]]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    blocks=st.sampled_from([32, 34, 40, 60, 200]),
    caching=st.sampled_from([True, True, True, False]),
    latency=st.sampled_from(LATENCIES),
    steps=st.sampled_from(
        [
            {},
            {"max_num_seqs": 16, "max_num_batched_tokens": 64},
            {"max_num_batched_tokens": 16},
            {"long_prefill_token_threshold": 8},
            {"max_num_seqs": 1},
            {"max_num_seqs": 16, "max_num_batched_tokens": 17},
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 256},
        ]
    ),
    replicas=st.sampled_from([1, 1, 2]),
    rate=st.sampled_from([2.0, 20.0, 100.0, 400.0]),
    most=st.sampled_from([2, 60, 100]),
    again=st.sampled_from([0, 10]),
    ids=st.booleans(),
)
def test_nothing_differs_from_the_real_engine(
    seed: int,
    blocks: int,
    caching: bool,
    latency: str,
    steps: dict[str, Any],
    replicas: int,
    rate: float,
    most: int,
    again: int,
    ids: bool,
) -> None:
    """Bit by bit, with evictions, copies and preemptions on small pools."""
    made = config(
        num_gpu_blocks_override=blocks,
        block_size=8,
        enable_prefix_caching=caching,
        simulator_latency=latency,
        seed=seed,
        **steps,
    )
    asks = asked(seed, 30, rate, most, ids=ids)
    real = [Simulation(made, number) for number in range(replicas)]
    arrays = [ArrayEngine(made, number) for number in range(replicas)]
    told = outcome([*real], asks, again)
    assert outcome([checked(each) for each in arrays], asks, again) == told
    assert [each.steps for each in arrays] == [each.executor._steps for each in real]


def test_prompts_that_start_whole_wait_for_a_step_that_has_room_for_them() -> None:
    draw = random.Random(1)
    prompts = [[draw.randrange(6, 2800) for _ in range(150)] for _ in range(12)]
    asks = [Ask(0.01 * i, prompt, 20) for i, prompt in enumerate(prompts)]
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": 256}
    made = config(num_gpu_blocks_override=200, block_size=8, **whole)
    told = outcome([Simulation(made)], asks, 0)
    assert outcome([checked(ArrayEngine(made))], asks, 0) == told


def test_the_comparison_meets_what_is_hard() -> None:
    """Preempted sequences that are preempted again, hits, and evictions."""
    made = config(num_gpu_blocks_override=32, block_size=8, max_num_seqs=16)
    done = ArrayEngine(made)
    told = drive([done], asked(3, 60, 400.0, 100, ids=False), lambda ask: 0)
    assert max(t.preemptions for t in told) > 1
    assert sum(t.cached_tokens for t in told) > 0
    assert done._state.keys["there"].sum() < len(done._numbers)


@pytest.mark.parametrize("routing", ROUTES)
def test_a_cluster_routes_alike(routing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(num_gpu_blocks_override=40, block_size=8)
    asks = asked(5, 60, 100.0, 30, ids=False)
    fast = Cluster(made, 3, routing, hashed_tokens=16)
    assert all(isinstance(each, ArrayEngine) for each in fast.replicas)
    monkeypatch.setattr(cluster, "engine", Simulation)
    slow = Cluster(made, 3, routing, hashed_tokens=16)
    assert all(isinstance(each, Simulation) for each in slow.replicas)
    assert fast.run(asks).row() == slow.run(asks).row()
    assert fast.counts == slow.counts


@pytest.mark.parametrize(
    "args",
    [
        {"simulator": "echo"},
        {"simulator_failures": "stall=0.5"},
        {"kv_eviction_policy": "fifo"},
        {"scheduling_policy": "priority"},
        {"enable_prefix_aware_scheduling": True},
        {"max_num_queued_reqs": 4},
        {"prefix_metrics": "somewhere"},
        TIERS,
    ],
)
def test_what_is_not_plain_is_the_real_engine(args: dict[str, Any]) -> None:
    made = config(**args)
    assert not plain(made)
    assert isinstance(engine(made), Simulation)
    with pytest.raises(ValueError, match="plain"):
        ArrayEngine(made)


@pytest.mark.parametrize("make", [Simulation, ArrayEngine])
def test_what_cannot_run_is_refused(make: type[Simulation | ArrayEngine]) -> None:
    replica = make(config(num_gpu_blocks_override=40, block_size=8))
    with pytest.raises(ValueError, match="256 tokens is too long for a context of 256"):
        replica.add(Ask(0.0, [7] * 256, 1))
    for ask in (Ask(0.0, [], 1), Ask(0.0, [7], 0)):
        with pytest.raises(ValueError, match="a prompt, and max_tokens of at least 1"):
            replica.add(ask)
    assert not replica.has_work
    replica.check()


@given(
    latency=st.sampled_from(LATENCIES),
    counts=st.tuples(*[st.integers(0, n) for n in (10**5, 10**4, 10**9, 10**12)]),
)
def test_seconds_are_the_latency_models(latency: str, counts: tuple[int, int, int, int]) -> None:
    model = parse(latency, config().model)
    assert kernel.seconds(_weights(model)[0], *counts) == model(Step(*counts))


def test_seconds_of_a_mixture_of_experts() -> None:
    made = config(simulator_model="mixtral-8x7b", skip_tokenizer_init=True, max_model_len=64)
    model = parse("roofline:device=h100", made.model)
    for tokens in np.unique(np.geomspace(1, 10**4, 50).astype(int)).tolist():
        step = Step(tokens, 3, 10 * tokens, 100 * tokens)
        assert kernel.seconds(
            _weights(model)[0], step.prefill_tokens, 3, step.kv_tokens, step.pairs
        ) == model(step)
