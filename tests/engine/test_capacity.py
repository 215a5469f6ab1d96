"""How much a KV cache holds, and the context length that fits into it."""

from __future__ import annotations

import pytest

from vllm.config import EngineArgs
from vllm.engine.capacity import Capacity, capacity


def fitted(**given: object) -> Capacity:
    return capacity(EngineArgs(**given).create_engine_config())


def test_a_length_that_only_the_model_names_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    assert fitted(num_gpu_blocks_override=10, block_size=16).max_model_len == 160
    assert "max_model_len" in caplog.text
    roomy = fitted(num_gpu_blocks_override=1000)
    assert (roomy.num_blocks, roomy.tokens) == (1000, 16000)


def test_a_length_that_was_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_model_len 161 .* holds 160 tokens"):
        fitted(num_gpu_blocks_override=10, max_model_len=161)
    assert fitted(num_gpu_blocks_override=10, max_model_len=160).max_model_len == 160


def test_blocks_come_from_memory_unless_they_are_given() -> None:
    one = fitted(num_gpu_blocks_override=1000).spec.block_bytes
    assert fitted(kv_cache_memory_bytes=one * 20 + one - 1).num_blocks == 20
    with pytest.raises(ValueError, match="kv_cache_memory_bytes"):
        fitted(kv_cache_memory_bytes=one - 1)


def test_without_chunks_a_step_must_hold_the_longest_prompt() -> None:
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": 500, "max_num_seqs": 4}
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        fitted(**whole, max_model_len=501)
    fitted(**whole, max_model_len=500)


def test_a_cache_of_one_token_is_no_cache() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        fitted(num_gpu_blocks_override=1, block_size=1)
