"""Tiers change how long a prompt takes and nothing else; in float32 that holds to the token."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vllm.config import EngineArgs
from vllm.entrypoints.llm_engine import LLMEngine
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

SIZE, LENGTHS = 16, (33, 48, 65, 80)


def make(**options) -> LLMEngine:
    made = {
        "dtype": "float32",
        "kernels": "reference",
        "cpu_threads": 1,
        "block_size": SIZE,
        "max_model_len": 96,
        "num_gpu_blocks_override": 8,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 96,
    }
    return LLMEngine.from_engine_args(EngineArgs(**(made | options)))


def tiered(disk: Path | None = None, host: int = 64, **options) -> LLMEngine:
    return make(
        enable_multi_tier_prefix_caching=True,
        num_cpu_blocks_override=host,
        disk_cache_dir=None if disk is None else str(disk),
        min_load_tokens=0,
        **options,
    )


def prompts(count: int = 4) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(1000) for _ in range(LENGTHS[i % 4])] for i in range(count)]


def run(engine: LLMEngine, texts: list[list[int]]) -> list[RequestOutput]:
    """One after the other, so that each pushes out what was there before."""
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    outputs = []
    for i, text in enumerate(texts):
        engine.add_request(str(i), text, params)
        while engine.has_unfinished_requests():
            outputs += [o for o in engine.step() if o.finished]
            engine.core.check()
        while engine.core.tidy():
            engine.core.scheduler.kv.wait(0.01)
    return outputs


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in outputs]


def cached(outputs: list[RequestOutput]) -> int:
    return sum(o.num_cached_tokens for o in outputs)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return tokens(run(make(enable_prefix_caching=False), prompts()))


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("where", ["host", "disk", "mixed"])
@pytest.mark.parametrize("budget", [24, 96])
def test_tokens_are_the_same(tmp_path, expected, asynchronous, where, budget):
    engine = tiered(
        None if where == "host" else tmp_path,
        host={"host": 64, "disk": 1, "mixed": 6}[where],
        enable_async_swapping=asynchronous,
        max_num_batched_tokens=budget,
        enable_prefix_aware_scheduling=budget == 24,
    )
    cold = run(engine, prompts())
    warm = run(engine, prompts())
    assert tokens(cold) == tokens(warm) == expected
    assert cached(cold) == 0
    if where == "host":
        assert cached(warm) == sum((length - 1) // SIZE * SIZE for length in LENGTHS)
    engine.core.shutdown()


def test_a_restart_finds_the_disk(tmp_path, expected):
    """But not with another block size, whose keys are others."""
    first = tiered(tmp_path, host=2)
    run(first, prompts())
    first.core.shutdown()
    assert list(tmp_path.rglob("*")), "something was written"
    again = tiered(tmp_path, host=2)
    warm = run(again, prompts())
    assert tokens(warm) == expected
    assert cached(warm) > 0
    again.core.shutdown()
    other = tiered(tmp_path, host=2, block_size=8, num_gpu_blocks_override=16)
    assert cached(run(other, prompts())) == 0
    other.core.shutdown()


def test_reset_clears_all_tiers(tmp_path, expected):
    engine = tiered(tmp_path, host=6)
    run(engine, prompts())
    assert engine.core.reset_prefix_cache(below=True)
    cold = run(engine, prompts())
    assert tokens(cold) == expected
    assert cached(cold) == 0
    engine.core.shutdown()


def test_a_disk_that_fails_only_shortens_hits(tmp_path, expected, monkeypatch):
    def fail(*args):
        raise OSError(5, "made up")

    engine = tiered(tmp_path, host=2)
    run(engine, prompts())
    monkeypatch.setattr("vllm.kv.tiers.disk.os.readv", fail)
    monkeypatch.setattr("vllm.kv.tiers.disk.os.write", fail)
    assert tokens(run(engine, prompts())) == expected
    engine.core.shutdown()


def test_no_load_is_in_time(expected):
    engine = tiered()
    engine.core.scheduler.kv.tiers.mover.deadline = -1.0
    run(engine, prompts())
    assert tokens(run(engine, prompts())) == expected
    engine.core.shutdown()
