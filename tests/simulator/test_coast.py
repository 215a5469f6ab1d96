"""Decodes that coast against decodes that have a row in every step: nothing else differs."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm import SamplingParams
from vllm.core.plan import Foresight
from vllm.core.request import EngineRequest
from vllm.scheduler.scheduler import Scheduler
from vllm.simulator.run import Ask, Simulation, Told, drive

from .test_simulation import TIERS, sessions, simulation

WHOLE = {"enable_chunked_prefill": False, "max_num_batched_tokens": 256}  # prompts


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    path.write_text("".join(f'{{"output_length": {3 + 7 * (i % 11)}}}\n' for i in range(40)))
    return path


def rowwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing coasts."""

    def nothing(self: Scheduler, foresight: Foresight) -> None:
        assert self._coast is None

    monkeypatch.setattr(Scheduler, "foresee", nothing)


def story(done: list[Told]) -> list[Any]:
    return [
        (
            t.ask.arrival,
            t.replica,
            t.first_token,
            t.finished,
            t.cached_tokens,
            t.preemptions,
            t.finish_reason,
            t.tokens,
            t.sources,
        )
        for t in done
    ]


def asked(seed: int, count: int, rate: float, most: int) -> list[Ask]:
    draw, at = random.Random(seed), 0.0
    asks = []
    for prompt in sessions(seed, count):
        at += draw.expovariate(rate)
        asks.append(Ask(at, prompt, draw.randrange(1, most)))
    return asks


def run(args: dict[str, Any], asks: list[Ask], replicas: int, again: int) -> tuple[list[Any], Any]:
    """What became of the requests, some of which bring about others; counts; and the engines."""
    engines = [simulation(**args) for _ in range(replicas)]
    totals: list[tuple[int, int, int, int]] = []
    for engine in engines:
        step = engine.core.step

        def counted(step: Any = step, engine: Simulation = engine) -> Any:
            engine.core.scheduler.check()
            told = step()
            stats = told.stats
            totals.append(
                (
                    stats.generated_tokens,
                    stats.preemptions,
                    sum(stats.step_tokens),
                    len(stats.step_tokens),
                )
            )
            return told

        engine.core.step = counted  # type: ignore[method-assign]
    left = itertools.count(again, -1)

    def follow(told: Told) -> list[Ask]:
        if next(left) <= 0:
            return []
        return [Ask(told.finished + 0.01, [*told.ask.prompt, *told.tokens][:200], 17)]

    turn = itertools.count()
    done = drive(engines, asks, lambda ask: next(turn) % replicas, follow=follow)
    used = [sorted(engine.core.scheduler.kv.uses._uses.items()) for engine in engines]
    return [story(done), [sum(column) for column in zip(*totals, strict=True)], used], engines


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    mode=st.sampled_from(["random", "echo", "trace"]),
    blocks=st.sampled_from([34, 50, 200]),
    size=st.sampled_from([8, 16]),
    tiers=st.booleans(),
    window=st.sampled_from([1, 4]),
    priority=st.booleans(),
    swap=st.booleans(),
    failures=st.sampled_from(["", "request=0.1,stream=0.1,stall=0.2,seconds=0.05"]),
    latency=st.sampled_from(["linear:", "linear:kv=1e-6", "linear:step=0,sequence=0"]),
    policy=st.sampled_from(["lru", "lru", "workload", "ttl", "lhd"]),
    chunks=st.sampled_from([{}, {"long_prefill_token_threshold": 8}, WHOLE]),
    queued=st.sampled_from([{}, {}, {"max_num_queued_reqs": 2, "max_num_seqs": 3}]),
    replicas=st.sampled_from([1, 1, 2]),
)
def test_coasting_changes_nothing(lengths: Path, seed: int, mode: str, **case: Any) -> None:
    args: dict[str, Any] = {
        "simulator": mode,
        "num_gpu_blocks_override": case["blocks"] * 8 // case["size"],
        "block_size": case["size"],
        "max_num_seqs": 8,
        "scheduling_policy": "priority" if case["priority"] else "fcfs",
        "simulator_latency": case["latency"],
        "kv_eviction_policy": case["policy"],
        **case["chunks"],
        **case["queued"],
    }
    if mode == "trace":
        args["simulator_trace"] = str(lengths)
    if case["failures"]:
        args["simulator_failures"] = case["failures"]
    if case["window"] > 1:
        args |= {"enable_prefix_aware_scheduling": True, "scheduler_window_size": case["window"]}
    if case["tiers"]:
        args |= TIERS | {"simulator_host_bandwidth": 1e7}
        if case["swap"]:
            args["preemption_mode"] = "swap"
    asks = asked(seed, 24, rate=60.0, most=70)
    fast, engines = run(args, asks, case["replicas"], again=10)
    with pytest.MonkeyPatch.context() as patch:
        rowwise(patch)
        slow, _ = run(args, asks, case["replicas"], again=10)
    assert fast == slow
    for engine in engines:
        engine.core.check()


def test_few_rows_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 tokens each in blocks of 64, most need no row, and most steps no plan."""
    args: dict[str, Any] = {"block_size": 64, "num_gpu_blocks_override": 60}
    rows = []

    def plans() -> int:
        engine = simulation(**args)
        schedule = engine.core.scheduler.schedule

        def counted(now: float) -> Any:
            plan = schedule(now)
            rows.append(len(plan.seqs))
            return plan

        engine.core.scheduler.schedule = counted  # type: ignore[method-assign]
        rows.clear()
        done = engine.run([Ask(0.0, [7 + i] * 40, 200) for i in range(4)])
        assert [t.output_tokens for t in done] == [200] * 4
        return len(rows)

    assert plans() < 40 and sum(rows) < 80
    rowwise(monkeypatch)
    assert plans() >= 200 and sum(rows) >= 800


def life(seed: int) -> list[Any]:
    """Requests of several outputs; some are aborted, ended or queued again. What became of them."""
    draw, told = random.Random(seed), Counter[tuple[str, int]]()
    args: dict[str, Any] = {"block_size": 16, "num_gpu_blocks_override": 40, "max_num_seqs": 8}
    engine = simulation(simulator=draw.choice(["random", "echo"]), **args)
    core, ended, at = engine.core, [], 0.0

    def step(until: float) -> None:
        engine.executor.horizon = until
        for output in core.step().outputs:
            name = output.request_id, output.index
            told[name] += len(output.token_ids)
            if output.finish_reason is not None:
                end = output.finish_reason, output.stop_reason, output.preemptions
                ended.append((name, engine.clock.now, told.pop(name), end))
        core.check()

    for i, prompt in enumerate(sessions(seed, 16)):
        at += draw.expovariate(40.0)
        while core.has_work and engine.clock.now < at:
            step(at)
        engine.clock.sleep_until(at)
        params = SamplingParams(
            n=draw.choice([1, 1, 3]),
            max_tokens=draw.randrange(1, 70),
            min_tokens=draw.choice([0, 0, 1]),
            stop_token_ids=draw.sample(prompt, draw.randrange(2)),
            detokenize=False,
        )
        core.add(
            EngineRequest(
                request_id=str(i),
                prompt_token_ids=prompt,
                params=params,
                max_tokens=params.max_tokens or 0,
                arrival=at,
            )
        )
        what, which = draw.randrange(6), str(draw.randrange(i + 1))
        if what == 0:
            core.abort([which])
        elif what == 1 and (which, 0) in told:
            core.end([(which, 0)])
        elif what == 2:
            core.reset_prefix_cache(running=True)
        core.check()
    while core.has_work:
        step(math.inf)
    assert core.scheduler.kv.usage == 0
    return ended


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_who_coasts_may_be_aborted_ended_and_queued_again(seed: int) -> None:
    fast = life(seed)
    with pytest.MonkeyPatch.context() as patch:
        rowwise(patch)
        assert fast == life(seed)


def test_a_crash_comes_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it all have their tokens: they end as if each token had had a row."""

    def ends() -> list[tuple[str, float, int]]:
        engine = simulation(simulator_failures="crash=50", num_gpu_blocks_override=40)
        for i in range(4):
            engine.add(Ask(0.0, [7 + i] * 40, 90 + i))
        ended, crashed = [], 0
        while engine.core.has_work:
            engine.executor.horizon = math.inf
            try:
                outputs = engine.core.step().outputs
            except RuntimeError:
                crashed += 1
                continue
            ended += [
                (o.request_id, engine.clock.now, o.preemptions) for o in outputs if o.finish_reason
            ]
        assert crashed == 1 and len(ended) == 4
        return ended

    fast = ends()
    rowwise(monkeypatch)
    assert fast == ends()


def test_what_coasted_is_written_nowhere_twice(tmp_path: Path) -> None:
    """The prefix metrics know of each request once, whoever coasts."""
    args: dict[str, Any] = {"block_size": 16, "num_gpu_blocks_override": 200}
    engine = simulation(**args, prefix_metrics=str(tmp_path / "m"))
    engine.run(asked(3, 20, 50.0, 60))
    engine.core.dump_prefix_metrics()
    lines = [json.loads(x) for x in (tmp_path / "m_requests.jsonl").read_text().splitlines()]
    assert len(lines) == 21
