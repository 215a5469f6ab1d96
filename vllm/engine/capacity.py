"""How much the KV cache holds, settled before anything is allocated."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vllm.config import VllmConfig
from vllm.kv.spec import KVSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Capacity:
    spec: KVSpec
    num_blocks: int
    max_model_len: int

    @property
    def tokens(self) -> int:
        return self.num_blocks * self.spec.block_size


def capacity(config: VllmConfig) -> Capacity:
    """Blocks from the memory allowed, and the context length that fits into them.

    A context length that the user asked for and that does not fit is a ValueError; one that only
    config.json names is cut to what fits, with a warning.
    """
    model, cache = config.model, config.cache
    spec = KVSpec(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        block_size=cache.block_size,
        dtype=model.dtype,
    )
    blocks = cache.num_blocks or cache.memory_bytes // spec.block_bytes
    length = model.max_model_len
    if blocks * spec.block_size < length:
        fits = blocks * spec.block_size
        if model.max_len_given or fits < 2:
            needed = -(-length // spec.block_size) * spec.block_bytes
            raise ValueError(
                f"max_model_len {length} does not fit into the KV cache, which holds {fits} "
                f"tokens; one such sequence needs {needed} bytes: raise kv_cache_memory_bytes "
                "(or VLLM_CPU_KVCACHE_SPACE) or lower max_model_len"
            )
        logger.warning(
            "max_model_len is cut from %d to the %d tokens that the KV cache holds", length, fits
        )
        length = fits
    scheduler = config.scheduler
    if not scheduler.enable_chunked_prefill and scheduler.max_num_batched_tokens < length:
        raise ValueError(
            f"without chunked prefill, max_num_batched_tokens ({scheduler.max_num_batched_tokens}) "
            f"must be at least max_model_len ({length})"
        )
    return Capacity(spec, blocks, length)
