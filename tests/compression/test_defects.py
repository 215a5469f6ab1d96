"""What went wrong in the first implementation of KV-Compress goes right here: a test a defect.

Two more are elsewhere: rates of 1.0 that evict (test_choose), prompts and decodes that cannot share
a step (test_oracle, dense and compressed sequences in one batch).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vllm import LLM, SamplingParams, VLLMValidationError
from vllm.kv.table import HeadTable
from vllm.outputs import RequestOutput
from vllm.worker.inputs import _heads

LAYERS, HEADS, BLOCK = 4, 4, 8
KEEP = {"max_cache_tokens": 40, "protected_window_size": 16}


@contextmanager
def engine(**options: Any) -> Iterator[LLM]:
    given = {"block_size": BLOCK, "max_model_len": 256, "num_gpu_blocks_override": 200}
    llm = LLM(enable_kvc=True, **given | options)
    yield llm
    llm.llm_engine.core.check()
    llm.shutdown()


def prompts(*lengths: int) -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(10, 2000) for _ in range(n)] for n in lengths]


def ask(llm: LLM, given: list[list[int]], tokens: int = 2, **wish: Any) -> list[RequestOutput]:
    plain = {"temperature": 0, "ignore_eos": True, "max_tokens": tokens}
    return llm.generate(given, SamplingParams(**plain | wish), use_tqdm=False)


def test_the_second_of_a_batch_is_compressed_as_far_as_the_first() -> None:
    """There, protected groups were counted from the batch's start, not from the sequence's."""
    given = prompts(*[120 + 8 * i for i in range(8)])
    with engine() as llm:
        together = ask(llm, given, **KEEP)
        for output in together:
            assert sum(map(sum, llm.get_kv_head_lengths(output))) == (40 + 1) * LAYERS * HEADS
        llm.reset_prefix_cache()
        alone = [ask(llm, [p], **KEEP)[0] for p in given]
        for a, b in zip(together, alone, strict=True):
            assert llm.get_kv_head_lengths(a) == llm.get_kv_head_lengths(b)


def test_the_servers_settings_take_effect() -> None:
    """There, they were validated and then only the requests' own were used."""
    given = prompts(160)
    with engine(target_compression_rate=0.25, protected_window_size=16) as llm:
        (output,) = ask(llm, given)
        kept = sum(map(sum, llm.get_kv_head_lengths(output)))
        assert kept == (144 // 4 + 16 + 1) * LAYERS * HEADS
        (own,) = ask(llm, given, **KEEP)
        assert sum(map(sum, llm.get_kv_head_lengths(own))) == 41 * LAYERS * HEADS
    with engine(max_cache_tokens=48, protected_window_size=16, compression_sinks=3) as llm:
        (output,) = ask(llm, given)
        assert sum(map(sum, llm.get_kv_head_lengths(output))) == 49 * LAYERS * HEADS


def test_even_eviction_and_control_layers_are_obeyed() -> None:
    """There, the second way to choose ignored both."""
    with engine(even_layer_evict=True, control_layers=[1]) as llm:
        (output,) = ask(llm, prompts(160), **KEEP)
        lengths = llm.get_kv_head_lengths(output)
    assert lengths[1] == [161] * HEADS
    assert [sum(lengths[layer]) for layer in (0, 2, 3)] == [41 * HEADS] * 3


def test_sinks_can_be_had() -> None:
    """There, their number was an argument of a constructor, and always 0."""
    with engine() as llm:
        worker = llm.llm_engine.core.executor.model_runner._compressor
        seen: list[np.ndarray] = []
        carry_out = worker.compress

        def compress(order: Any, rows: Any) -> Any:
            lengths = carry_out(order, rows)
            seen.append(worker._watched[order.seq].kept.numpy().copy())
            return lengths

        worker.compress = compress
        ask(llm, prompts(160), **KEEP, sinks=6)
    (kept,) = seen
    for head in kept.reshape(-1, kept.shape[-1]):
        assert set(range(6)) <= set(head.tolist()) and set(range(144, 160)) <= set(head.tolist())


def test_the_interval_is_each_sequences_own() -> None:
    """There, it was kept once for the object that all outputs of a request share."""
    with engine(compression_interval=20, num_gpu_blocks_override=400) as llm:
        (first,) = ask(llm, prompts(90), 70, **KEEP)
        times = first.outputs[0].kv_compression.times
        assert 2 <= times <= 1 + 70 // 20
        both = ask(llm, prompts(90, 100), 70, n=2, temperature=1.0, seed=3, **KEEP)
        assert {o.kv_compression.times for r in both for o in r.outputs} == {times}


def test_a_prompt_too_long_is_refused_and_the_engine_goes_on() -> None:
    """There, "Input length too long" ended the engine."""
    with engine() as llm:
        with pytest.raises(VLLMValidationError):
            ask(llm, prompts(300), **KEEP)
        (output,) = ask(llm, prompts(100), **KEEP)
        assert output.finished


def test_steps_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """There, they did, on the hot path."""
    with engine() as llm:
        capfd.readouterr()
        ask(llm, prompts(160, 90), 30, **KEEP)
        assert capfd.readouterr().out == ""


def test_attention_is_sized_by_what_is_kept() -> None:
    """There, it was sized by the logical length."""
    blocks = np.arange(LAYERS * HEADS * 3, dtype=np.int32).reshape(LAYERS, HEADS, 3)
    lengths = np.full((LAYERS, HEADS), 17, dtype=np.int32)
    table = HeadTable(blocks, lengths, 100_000, BLOCK, 17 * LAYERS * HEADS)
    made = _heads([table], np.array([1]))
    assert made.tables.shape[-1] == 3
    assert int(made.lengths.max()) == 17


def test_enable_kvc_is_a_flag_and_not_the_beginning_of_one() -> None:
    """There, --enable-kvc worked because argparse completes what is unambiguous."""
    from vllm.config import EngineArgs
    from vllm.config.flags import FlexibleArgumentParser, add_flags

    parser = FlexibleArgumentParser(prog="test")
    add_flags(parser, EngineArgs)
    assert parser.parse_args(["--enable-kvc"]).enable_kvc is True
    assert parser.parse_args(["--enable-kvc"]).enable_kvcompress is False
    with pytest.raises(SystemExit):
        parser.parse_args(["--enable-kv"])
