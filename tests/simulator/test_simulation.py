"""The simulated engine against the real one, and against itself."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm import LLM, EngineArgs, SamplingParams
from vllm.simulator.prompts import keys_of, prompt_of
from vllm.simulator.run import Ask, Simulation, Told

SMALL: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 64}
TIERS: dict[str, Any] = {
    "enable_multi_tier_prefix_caching": True,
    "enable_async_swapping": True,
    "num_cpu_blocks_override": 64,
}


def simulation(**args: Any) -> Simulation:
    given: dict[str, Any] = {"simulator": "random", "simulator_clock": "virtual"} | SMALL | args
    return Simulation(EngineArgs(**given).create_engine_config())


def sessions(seed: int, count: int) -> list[list[int]]:
    """Prompts that share beginnings of many lengths, over the demo model's vocabulary."""
    draw = random.Random(seed)
    told: list[list[int]] = [[draw.randrange(6, 2800) for _ in range(40)]]
    for _ in range(count):
        base = draw.choice(told)
        kept = base[: draw.randrange(1, len(base) + 1)]
        told.append((kept + [draw.randrange(6, 2800) for _ in range(draw.randrange(1, 40))])[:180])
    return told


def summary(done: list[Told]) -> list[tuple[float, float, float, int, int]]:
    return [
        (t.ask.arrival, t.first_token, t.finished, t.cached_tokens, t.output_tokens) for t in done
    ]


@pytest.mark.parametrize("blocks", [200, 24])
@pytest.mark.parametrize("window", [1, 4])
def test_cached_tokens_are_the_real_engines(blocks: int, window: int) -> None:
    """All requests at once, with evictions and preemptions on the small pool: 0 difference."""
    prompts = sessions(3, 40)
    args: dict[str, Any] = SMALL | {"num_gpu_blocks_override": blocks, "block_size": 16}
    if window > 1:
        args |= {"enable_prefix_aware_scheduling": True, "scheduler_window_size": window}
    llm = LLM(kernels="reference", disable_log_stats=False, **args)
    params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0)
    real = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    llm.shutdown()
    engine = simulation(**args)
    done = engine.run([Ask(0.0, prompt, 60, note=i) for i, prompt in enumerate(prompts)])
    done.sort(key=lambda told: told.ask.note)  # type: ignore[arg-type, return-value]
    assert [t.cached_tokens for t in done] == [o.num_cached_tokens for o in real]
    assert [t.preemptions for t in done] == [o.metrics.num_preemptions for o in real if o.metrics]
    assert sum(t.cached_tokens for t in done) > 0
    assert blocks > 100 or sum(t.preemptions for t in done) > 0
    engine.core.check()


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), tiers=st.booleans(), failure=st.sampled_from([0.0, 0.3]))
def test_the_same_requests_give_the_same_results(seed: int, tiers: bool, failure: float) -> None:
    """Under load, with tiers that fail; and nothing is left behind."""
    draw = random.Random(seed)
    args: dict[str, Any] = {"num_gpu_blocks_override": 40, "block_size": 8}
    if tiers:
        args |= TIERS | {"simulator_failures": f"tier={failure}", "simulator_host_bandwidth": 1e6}
    at = 0.0
    asks = []
    for prompt in sessions(seed, 30):
        at += draw.expovariate(100)
        asks.append(Ask(at, prompt, draw.randrange(1, 20)))
    first, second = (simulation(**args) for _ in range(2))
    done = first.run(asks)
    assert summary(done) == summary(second.run(asks))
    assert len(done) == len(asks)
    for told in done:
        assert told.output_tokens == told.ask.max_tokens
        assert told.ask.arrival <= told.first_token <= told.finished
    kv = first.core.scheduler.kv
    while first.core.tidy():  # a late load holds its blocks until it ends
        kv.wait(1.0)
    assert kv.usage == 0
    first.core.check()


def test_tiers_take_time_and_save_more() -> None:
    """Two long prompts in turn, with room for one on the device: then the other is loaded."""
    prompts = [[i] * 200 for i in (7, 8)]
    asks = [Ask(float(i), prompts[i % 2], 1) for i in range(6)]
    args: dict[str, Any] = {"num_gpu_blocks_override": 16, "block_size": 16}
    args |= {"simulator_latency": "linear:step=0,sequence=0,prefill=1e-3,kv=0"}
    alone = simulation(**args).run(asks)
    assert [t.cached_tokens for t in alone] == [0, 0, 48, 48, 48, 48]
    engine = simulation(**args, **TIERS, simulator_host_bandwidth=1e7)
    tiered = engine.run(asks)
    assert [t.cached_tokens for t in tiered] == [0, 0, 192, 192, 192, 192]
    block = engine.core.capacity.spec.block_bytes
    loading = 9 * block / 1e7  # the other three are on the device
    expected = loading + 8e-3
    assert tiered[-1].ttft == pytest.approx(expected, rel=0.05)
    assert alone[-1].ttft == pytest.approx(0.152)


def test_a_session_goes_on_when_its_turn_ends() -> None:
    engine = simulation(num_gpu_blocks_override=100)
    turns = {"count": 1}

    def follow(told: Told) -> list[Ask]:
        turns["count"] += 1
        if turns["count"] > 5:
            return []
        prompt = [*told.ask.prompt, *told.tokens, *[9] * 10]
        return [Ask(told.finished + 1.0, prompt, 4)]

    done = engine.run([Ask(0.0, [5] * 40, 4)], follow=follow)
    assert len(done) == 5
    for before, after in itertools.pairwise(done):
        assert after.ask.arrival == before.finished + 1.0
        assert after.cached_tokens == (len(before.ask.prompt) + 3) // 16 * 16


def test_what_the_tokens_are(tmp_path: Path) -> None:
    llm = LLM(simulator="echo", simulator_clock="virtual", num_gpu_blocks_override=50)
    [echo] = llm.generate("The code is", SamplingParams(max_tokens=30), use_tqdm=False)
    assert echo.outputs[0].text.strip() == "The code is"
    assert echo.outputs[0].finish_reason == "stop"
    forced = SamplingParams(reference_token_ids=[9, 8, 9])
    [given] = llm.generate("The code is", forced, use_tqdm=False)
    assert given.outputs[0].token_ids == [9, 8, 9]
    [short] = llm.generate("The code is", SamplingParams(max_tokens=2, logprobs=1), use_tqdm=False)
    assert short.outputs[0].finish_reason == "length"
    assert short.outputs[0].cumulative_logprob == 0.0
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"output_length": n}) + "\n" for n in (3, 1, 5)))
    llm = LLM(
        simulator="trace",
        simulator_trace=str(trace),
        simulator_clock="virtual",
        num_gpu_blocks_override=50,
    )
    outputs = llm.generate(["a", "b", "c", "d"], SamplingParams(max_tokens=30), use_tqdm=False)
    assert [len(o.outputs[0].token_ids) - 1 for o in outputs] == [3, 1, 5, 3]
    llm = LLM(simulator="random", simulator_clock="virtual", num_gpu_blocks_override=50)
    params = SamplingParams(max_tokens=40, seed=1)
    twice = [llm.generate("x", params, use_tqdm=False)[0].outputs[0] for _ in range(2)]
    assert twice[0].token_ids == twice[1].token_ids and len(twice[0].token_ids) == 40


def test_the_sizes_are_the_models() -> None:
    args = EngineArgs(
        simulator="random", simulator_model="llama-3.1-8b", kv_cache_memory_bytes=2**30
    )
    llm = LLM.from_engine_args(args)
    spec = llm.llm_engine.core.capacity.spec
    assert spec.block_bytes == 16 * 128 * 1024, "128 KiB a token"
    assert llm.llm_engine.core.capacity.num_blocks == 512


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"simulator_model": "llama-3-8b"}, "needs simulator"),
        ({"simulator": "echo", "simulator_model": "no-such"}, "simulator_model"),
        ({"simulator": "trace"}, "simulator_trace"),
        ({"simulator": "echo", "simulator_trace": "x"}, "simulator_trace"),
        ({"simulator": "echo", "simulator_host_bandwidth": 0.0}, "simulator_host_bandwidth"),
        ({"simulator": "echo", "simulator_failures": "tier=2"}, "simulator_failures: tier"),
        ({"simulator": "echo", "simulator_failures": "stall=nan"}, "simulator_failures: stall"),
        ({"simulator": "echo", "simulator_failures": "request"}, "simulator_failures: request"),
        ({"simulator": "echo", "simulator_failures": "luck=1"}, "simulator_failures: 'luck'"),
        ({"simulator": "echo", "simulator_failures": "crash=1.5"}, "simulator_failures: crash"),
        ({"simulator": "echo", "simulator_failures": "seconds=inf"}, "simulator_failures"),
        ({"simulator": "echo", "simulator_latency": "sudden"}, "latency"),
        ({"simulator": "trace", "simulator_trace": "/nowhere"}, "nowhere"),
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LLM(num_gpu_blocks_override=300, **args)


@pytest.mark.parametrize("line", ["{}", '{"output_length": 0}', "[]", "no"])
def test_a_bad_trace_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"output_length": 4}\n' + line)
    with pytest.raises(ValueError, match="trace"):
        LLM(simulator="trace", simulator_trace=str(path), num_gpu_blocks_override=300)


@given(
    ids=st.lists(st.integers(0, 10**6), max_size=6, unique=True),
    other=st.lists(st.integers(0, 10**6), max_size=6, unique=True),
    rest=st.integers(0, 15),
)
def test_prompts_share_what_their_ids_share(ids: list[int], other: list[int], rest: int) -> None:
    size = 16
    one, two = (prompt_of(x, len(x) * size + rest, size, 1000) for x in (ids, other))
    assert len(one) == len(ids) * size + rest and all(0 <= token < 1000 for token in one)
    shared = 0
    while shared < min(len(ids), len(other)) and ids[shared] == other[shared]:
        shared += 1
    for i in range(min(len(ids), len(other))):
        assert (one[: (i + 1) * size] == two[: (i + 1) * size]) == (i < shared)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), blocks=st.integers(24, 60))
def test_keys_of_ids_do_what_tokens_that_stand_for_them_do(seed: int, blocks: int) -> None:
    """With evictions and preemptions: the same hits at the same times, and nothing hashed."""
    draw, size = random.Random(seed), 16
    chains: list[list[int]] = [[0]]
    for _ in range(25):
        base = draw.choice(chains)[: draw.randrange(1, 9)]
        new = range(100 * len(chains), 100 * len(chains) + draw.randrange(1, 4))
        chains.append([*base, *new])
    by_tokens, by_keys = [], []
    for i, ids in enumerate(chains):
        count = len(ids) * size - draw.randrange(size)
        arrival, made = i * 0.004, draw.randrange(1, 40)
        by_tokens.append(Ask(arrival, prompt_of(ids, count, size, 2000), made))
        by_keys.append(Ask(arrival, [0] * count, made, keys=keys_of(ids, count, size)))
    args = {"num_gpu_blocks_override": blocks, "block_size": size}
    told = [simulation(**args).run(asks) for asks in (by_tokens, by_keys)]
    assert summary(told[0]) == summary(told[1])
    assert [t.preemptions for t in told[0]] == [t.preemptions for t in told[1]]
    assert sum(t.cached_tokens for t in told[0]) > 0
