"""Prompts that are longer than the memory are compressed as they come."""

from __future__ import annotations

import pytest
import torch

from compression.engines import Engine, checkpoint, prompt
from compression.oracle import oracle
from vllm.config.compression import CompressionSettings
from vllm.core.compression import METRICS, CompressionParams

BLOCKS, LENGTH = 40, 400  # of 4 tokens; the memory is for 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


def small(folder, **options) -> Engine:
    given = {"num_gpu_blocks_override": BLOCKS, "max_model_len": 512, "max_num_batched_tokens": 64}
    settings = options.pop("settings", None)
    return Engine(folder, settings, **(given | options))


def wish(**fields) -> CompressionParams:
    return CompressionParams(**({"max_cache_tokens": 24, "protected_window_size": 4} | fields))


def verify(engine: Engine, folder, tokens: list[int], ran, seq: int) -> list[int]:
    """As a dense run with masks at what had gone. Returns after how many tokens that was."""
    events = {e.tokens: e for e in engine.events if e.seq == seq}
    expected = oracle(folder, tokens + ran.tokens, list(events.values()))[len(tokens) - 1 : -1]
    torch.testing.assert_close(torch.stack(ran.logprobs), expected, atol=1e-4, rtol=0)
    return sorted(events)


@pytest.mark.parametrize("metric", METRICS)
def test_it_runs_and_is_what_it_kept(folder, metric):
    engine = small(folder)
    tokens = prompt(LENGTH)
    ran = engine.one(tokens, wish(metric=metric), max_tokens=20)
    at = verify(engine, folder, tokens, ran, 1)
    assert at[:7] == [57, 114, 171, 228, 285, 342, 400], (
        "evenly, no more than a step's tokens apart"
    )
    assert ran.reason == "length"
    assert len(ran.tokens) == 20
    assert ran.stats.times == len(at) > 7
    assert ran.stats.kept < 40 * 4


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"target_compression_rate": 0.1, "max_cache_tokens": None}, 4),
        ({"max_cache_tokens": 48, "sinks": 2, "protected_spans": ((9, 12), (200, 203))}, 8),
        ({"budget_rule": "pyramid", "metric": "kvc-full"}, 4),
        ({"budget_rule": "uniform", "compress_once": True}, 1),
    ],
)
def test_wishes_and_chunks(folder, fields, size):
    """How a stage is cut into steps makes no difference."""
    params, tokens = wish(**fields), prompt(LENGTH, 3)
    options = {"block_size": size, "num_gpu_blocks_override": BLOCKS * 4 // size}
    whole = small(folder, **options)
    ran = whole.one(tokens, params, max_tokens=12)
    stages = [t for t in verify(whole, folder, tokens, ran, 1) if t < LENGTH]
    assert len(stages) >= 5
    cut = small(folder, long_prefill_token_threshold=7, **options)
    other = cut.one(tokens, params, max_tokens=12)
    assert other.tokens == ran.tokens
    torch.testing.assert_close(
        torch.stack(other.logprobs), torch.stack(ran.logprobs), atol=1e-5, rtol=0
    )
    for event in whole.events:
        for place in (0, 1, 9, 10, 11, 200, 201, 202) if "sinks" in fields else ():
            if place < event.tokens:
                assert bool((event.kept == place).any(-1).all())


def test_one_that_fits_is_computed_whole(folder):
    """As in an engine with more memory, bit by bit."""
    tokens = prompt(120)
    ran = small(folder).one(tokens, wish(), max_tokens=20)
    expected = small(folder, num_gpu_blocks_override=400).one(tokens, wish(), max_tokens=20)
    assert all(torch.equal(a, b) for a, b in zip(ran.logprobs, expected.logprobs, strict=True))


def test_admission_counts_it_at_its_peak(folder):
    """Three side by side, of which each is longer than the memory; and all are as if alone."""
    engine = small(folder, num_gpu_blocks_override=80, max_num_batched_tokens=32)
    prompts = [prompt(LENGTH, seed) for seed in range(3)]
    for seed, tokens in enumerate(prompts):
        engine.request(f"r{seed}", tokens, wish(), max_tokens=60)
    ran = engine.run()
    assert max(len(plan.seqs) for plan in engine.plans) == 3
    assert all(r.preemptions == 0 for r in ran.values())
    for seed, tokens in enumerate(prompts):
        verify(engine, folder, tokens, ran[f"r{seed}", 0], seed + 1)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("after", [1, 3, 6, 7, 9])
def test_preempted_on_the_way(folder, after, swap):
    expected = small(folder).one(prompt(LENGTH), wish(), max_tokens=9)
    aside = {
        "enable_multi_tier_prefix_caching": True,
        "num_cpu_blocks_override": 64,
        "preemption_mode": "swap",
    }
    engine = small(folder, **(aside if swap else {}))
    engine.request("one", prompt(LENGTH), wish(), max_tokens=9)
    told = [t for _ in range(after) for o in engine.core.step().outputs for t in o.token_ids]
    scheduler = engine.core.scheduler
    scheduler._preempt(scheduler.running[0])
    ran = engine.run()["one", 0]
    assert told + ran.tokens == expected.tokens
    assert ran.stats == expected.stats


def test_only_its_first_stage_is_published(folder):
    engine = small(folder, num_gpu_blocks_override=80)
    tokens = prompt(LENGTH)
    engine.one(tokens, wish(), max_tokens=9)
    assert engine.kv.lookup(tokens, None, LENGTH) == 57 // 4 * 4
    again = engine.one(tokens, wish(), max_tokens=9)
    assert again.sources == {"device": (57 - 32) // 4 * 4}, "but for what the metric must see"


@pytest.mark.parametrize("once", [False, True])
def test_outputs_end_where_the_memory_does(folder, once):
    """What is appended behind one compression fills it; with one after another it never does."""
    engine = small(folder, num_gpu_blocks_override=30)
    ran = engine.one(prompt(LENGTH), wish(compress_once=once), max_tokens=112)
    assert ran.reason == "length"
    assert len(ran.tokens) == (88 if once else 112)
    dense = small(folder).one(prompt(150), None, max_tokens=50)
    assert len(dense.tokens) == 10, "one that is not compressed ends with the memory"


def test_what_has_no_room_in_this_way_either_is_refused(folder):
    for params in (None, wish(max_cache_tokens=120), wish(max_cache_tokens=None)):
        engine = small(folder)
        ran = engine.one(prompt(LENGTH), params)
        assert (ran.reason, ran.tokens) == ("invalid", [])
    large = {"enable_chunked_prefill": False, "max_num_batched_tokens": 512}
    with pytest.raises(ValueError, match="does not fit into the KV cache"):
        small(folder, **large)
    with pytest.raises(ValueError, match="does not fit into the KV cache"):
        small(folder, compression=False)


def test_several_outputs(folder):
    sampling = {"temperature": 1.0, "max_tokens": 8}
    engine = small(folder, num_gpu_blocks_override=80)
    engine.request("two", prompt(LENGTH), wish(), n=2, seed=5, **sampling)
    ran = engine.run()
    for index in range(2):
        alone = small(folder, num_gpu_blocks_override=80)
        expected = alone.one(prompt(LENGTH), wish(), seed=5 + index, **sampling)
        assert ran["two", index].tokens == expected.tokens


def test_it_shares_no_prefix(folder):
    engine = small(folder, settings=CompressionSettings(share=True))
    params = wish(shared_prefix_tokens=100)
    for _ in range(2):
        assert "compressed" not in engine.one(prompt(LENGTH), params).sources
    told = [engine.one(prompt(150, 1), params).sources for _ in range(2)]
    assert told == [{}, {"compressed": 100}]
