"""The engine against a dense run with masks at exactly what was dropped."""

from __future__ import annotations

import pytest
import torch

from compression.engines import Engine, Ran, checkpoint, prompt
from compression.oracle import oracle
from vllm.config.compression import CompressionSettings
from vllm.core.compression import METRICS, CompressionParams
from vllm.kernels import cpu

BUILT = cpu.available("cpu") is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kv_heads: int = 2):
        if kv_heads not in made:
            made[kv_heads] = checkpoint(tmp_path_factory.mktemp(f"heads{kv_heads}"), kv_heads)
        return made[kv_heads]

    return folder


def verify(engine: Engine, folder, tokens: list[int], ran: Ran, seq: int) -> int:
    """Logprobs as the oracle's, tokens as its best. Returns how often `seq` was compressed."""
    events = {e.tokens: e for e in engine.events if e.seq == seq}
    expected = oracle(folder, tokens + ran.tokens, list(events.values()))[len(tokens) - 1 : -1]
    torch.testing.assert_close(torch.stack(ran.logprobs), expected, atol=1e-4, rtol=0)
    assert ran.tokens == expected.argmax(-1).tolist()
    return len(events)


@pytest.mark.parametrize("metric", METRICS)
def test_compressed_after_the_prompt_and_again_while_decoding(folders, metric):
    folder = folders()
    engine = Engine(folder)
    params = CompressionParams(max_cache_tokens=16, protected_window_size=4, metric=metric)
    tokens = prompt(50)
    ran = engine.one(tokens, params, max_tokens=30)
    assert verify(engine, folder, tokens, ran, 1) > 3
    assert ran.stats.times > 3
    assert ran.stats.logical == (50 + 29) * 4
    assert ran.stats.kept == sum(map(sum, ran.stats.head_lengths)) < 25 * 4
    first = engine.events[0].kept
    assert torch.equal(first[0, 0], first[1, 1]) == (metric == "recency"), "heads choose"


@pytest.mark.parametrize(
    ("metric", "size", "kv_heads", "chunk", "once", "rule"),
    [
        ("kvc-diff", 1, 1, 512, False, "global"),
        ("kvc-diff", 8, 4, 7, True, "uniform"),
        ("kvc", 3, 4, 16, True, "per-layer"),
        ("kvc-full", 8, 2, 11, False, "pyramid"),
        ("kvc-full", 16, 1, 16, True, "uniform"),
        ("snapkv", 16, 4, 7, False, "uniform"),
        ("snapkv", 1, 2, 48, True, "pyramid"),
        ("h2o", 4, 4, 16, True, "global"),
        ("h2o", 8, 1, 512, False, "per-layer"),
        ("tova", 8, 4, 7, False, "global"),
        ("knorm", 1, 4, 11, True, "uniform"),
        ("keydiff", 16, 2, 16, False, "global"),
        ("expected-attention", 4, 1, 7, False, "pyramid"),
        ("rkv", 3, 2, 16, False, "per-layer"),
        ("recency", 8, 2, 512, True, "global"),
        ("random", 4, 2, 11, False, "per-layer"),
    ],
)
def test_block_sizes_groups_and_chunks(folders, metric, size, kv_heads, chunk, once, rule):
    folder = folders(kv_heads)
    engine = Engine(folder, block_size=size, max_num_batched_tokens=chunk)
    params = CompressionParams(
        target_compression_rate=0.3,
        protected_window_size=5,
        sinks=2,
        protected_spans=((9, 12),),
        metric=metric,
        compress_once=once,
        budget_rule=rule,
    )
    tokens = prompt(60, seed=size)
    ran = engine.one(tokens, params, max_tokens=24)
    assert verify(engine, folder, tokens, ran, 1) == ran.stats.times
    assert ran.stats.times == 1 if once else ran.stats.times >= 1
    kept = engine.events[0].kept.flatten(0, 1)
    for position in (0, 1, 9, 10, 11, 55, 59):
        assert bool((kept == position).any(-1).all()), "protected in every head"


@pytest.mark.skipif(not BUILT, reason="C++ kernels not built")
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_cpp_kernels(folders, kv_heads):
    folder = folders(kv_heads)
    engine = Engine(folder, kernels="cpu", block_size=8)
    params = CompressionParams(max_cache_tokens=24, protected_window_size=8)
    tokens = prompt(90)
    ran = engine.one(tokens, params, max_tokens=40)
    assert verify(engine, folder, tokens, ran, 1) > 2


@pytest.mark.parametrize("kernels", ["reference", *(["cpu"] if BUILT else [])])
def test_dense_and_compressed_sequences_in_one_batch(folders, kernels):
    """Each as if alone: those that are compressed at once, later, again and never."""
    folder = folders()
    engine = Engine(folder, max_num_batched_tokens=40, kernels=kernels)
    asked = {
        "often": (prompt(50, 1), CompressionParams(max_cache_tokens=12, protected_window_size=4)),
        "never": (prompt(33, 2), None),
        "later": (
            prompt(9, 3),
            CompressionParams(max_cache_tokens=16, protected_window_size=4, metric="h2o"),
        ),
        "once": (
            prompt(41, 4),
            CompressionParams(
                target_compression_rate=0.25,
                protected_window_size=8,
                compress_once=True,
                metric="keydiff",
            ),
        ),
        "plain": (prompt(50, 1), None),
    }
    for name, (tokens, params) in asked.items():
        engine.request(name, tokens, params, max_tokens=30)
    ran = engine.run()
    times = {
        name: verify(engine, folder, tokens, ran[name, 0], seq)
        for seq, (name, (tokens, _)) in enumerate(asked.items(), 1)
    }
    assert times["often"] > 3
    assert times["later"] > 2
    assert (times["once"], times["never"], times["plain"]) == (1, 0, 0)
    mixed = [p for p in engine.plans if {1, 2} <= set(p.seqs)]
    assert mixed, "the two kinds shared steps"


def test_forced_compressions_too(folders):
    """Memory for less than the three at their longest: they compress rather than be preempted."""
    folder = folders()
    engine = Engine(
        folder, CompressionSettings(interval=1000), num_gpu_blocks_override=36, max_model_len=128
    )
    params = CompressionParams(max_cache_tokens=12, protected_window_size=4)
    prompts = [prompt(12, seed) for seed in range(3)]
    for seed, tokens in enumerate(prompts):
        engine.request(f"r{seed}", tokens, params, max_tokens=60)
    ran = engine.run()
    for seed, tokens in enumerate(prompts):
        verify(engine, folder, tokens, ran[f"r{seed}", 0], seed + 1)
        assert ran[f"r{seed}", 0].preemptions == 0
    assert sum(r.stats.times for r in ran.values()) >= 2
