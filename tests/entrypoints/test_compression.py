"""`LLM` with compression: what a caller asks for is what is kept, and is told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

LAYERS, HEADS, BLOCK, PROMPT = 4, 4, 8, 160


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(enable_kvc=True, block_size=BLOCK, max_model_len=256, num_gpu_blocks_override=400)
    yield llm
    llm.shutdown()


def run(llm: LLM, *wishes: dict[str, Any], tokens: int = 1) -> list[RequestOutput]:
    rng = random.Random(1)
    prompts = [[rng.randrange(10, 2000) for _ in range(PROMPT)] for _ in wishes]
    plain = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    params = [SamplingParams(**plain | w) for w in wishes]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm.llm_engine.core.check()
    assert llm.llm_engine.core.scheduler.kv.usage == 0
    return outputs


def test_many_at_once_keep_what_each_asks_for(llm: LLM) -> None:
    sizes = [40, 48, 56, 64, 72, 80, 88]
    wishes = [{"max_cache_tokens": n, "protected_window_size": 16} for n in sizes]
    together = run(llm, *wishes, {}, {"target_compression_rate": 1.0}, tokens=5)
    for size, output in zip(sizes, together, strict=False):
        lengths = llm.get_kv_head_lengths(output)
        kvs = output.outputs[0].kv_compression
        assert kvs is not None and kvs.times >= 1
        assert kvs.logical == (PROMPT + 4) * LAYERS * HEADS
        assert kvs.kept == sum(map(sum, lengths)) <= (size + BLOCK + 4) * LAYERS * HEADS
        assert kvs.ratio == kvs.logical / kvs.kept
        assert [len(layer) for layer in lengths] == [HEADS] * LAYERS
    for plain in together[len(sizes) :]:
        assert llm.get_kv_head_lengths(plain) == [[PROMPT + 4] * HEADS] * LAYERS
        assert plain.outputs[0].kv_compression.times == 0
    alone = [run(llm, *[{}] * i, wishes[i], tokens=5)[i] for i in (0, 3, 6)]
    assert [o.outputs[0].token_ids for o in alone] == [
        together[i].outputs[0].token_ids for i in (0, 3, 6)
    ]


def test_once_or_again_and_again(llm: LLM) -> None:
    wish = {"max_cache_tokens": 40, "protected_window_size": 16}
    once, often = run(llm, wish | {"compress_once": True}, wish, tokens=60)
    assert once.outputs[0].kv_compression.times == 1
    assert often.outputs[0].kv_compression.times > 1
    assert once.outputs[0].kv_compression.kept > often.outputs[0].kv_compression.kept


def test_what_is_protected_costs_every_head(llm: LLM) -> None:
    spans = {"sinks": 8, "protected_spans": [[20, 60]], "protected_window_size": 16}
    (output,) = run(llm, {"max_cache_tokens": 64} | spans, tokens=2)
    assert llm.get_kv_head_lengths(output) == [[65] * HEADS] * LAYERS, "and the token behind them"


def test_reference_tokens_tell_what_compression_costs(llm: LLM) -> None:
    rng = random.Random(2)
    text = [rng.randrange(10, 2000) for _ in range(20)]
    wish = {"max_cache_tokens": 40, "protected_window_size": 16}
    whole, part = (run(llm, {"reference_token_ids": text} | w)[0] for w in ({}, wish))
    for output in (whole, part):
        assert output.outputs[0].token_ids == text
        assert len(output.outputs[0].logprobs) == 20
    assert part.outputs[0].kv_compression.times >= 1
    told = [
        [at[t].logprob for at, t in zip(o.outputs[0].logprobs, text, strict=True)]
        for o in (whole, part)
    ]
    assert all(value < 0 for values in told for value in values)
    assert told[0][0] == pytest.approx(told[1][0], abs=1e-3), "the first comes from all KVs"
    assert max(abs(a - b) for a, b in zip(*told, strict=True)) > 0.01


def test_a_long_system_prompt_is_compressed_once() -> None:
    options = {"max_model_len": 256, "block_size": BLOCK, "num_gpu_blocks_override": 400}
    llm = LLM(enable_kvc=True, share_compressed_prefixes=True, **options)
    rng = random.Random(3)
    system = [rng.randrange(10, 2000) for _ in range(PROMPT - 20)]
    params = SamplingParams(
        temperature=0,
        max_tokens=8,
        ignore_eos=True,
        max_cache_tokens=40,
        protected_window_size=16,
        shared_prefix_tokens=len(system),
    )
    agents = [system + [rng.randrange(10, 2000) for _ in range(20)] for _ in range(3)]
    first, *others = [llm.generate(a, params, use_tqdm=False)[0] for a in agents]
    assert first.cached_by_source == {}
    assert all(o.cached_by_source == {"compressed": len(system)} for o in others)
    llm.reset_prefix_cache()
    again = llm.generate(agents[1], params, use_tqdm=False)[0]
    assert again.cached_by_source == {}
    assert again.outputs[0].token_ids == others[0].outputs[0].token_ids
    llm.shutdown()


def test_an_engine_that_does_not_compress_tells_nothing() -> None:
    llm = LLM(max_model_len=64, num_gpu_blocks_override=16)
    (output,) = llm.generate([[5, 6]], SamplingParams(max_tokens=1), use_tqdm=False)
    with pytest.raises(ValueError, match="enable_kvc"):
        llm.get_kv_head_lengths(output)
    llm.shutdown()
