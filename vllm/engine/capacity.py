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

    A context length that the user asked for and that does not fit is a ValueError, unless requests
    may be compressed to fit; one that only config.json names is cut to what fits, with a warning.
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
    length, chunked = model.max_model_len, config.scheduler.enable_chunked_prefill
    if blocks * spec.block_size < length:
        fits = blocks * spec.block_size
        if config.compression is not None and model.max_len_given and fits >= 2 and chunked:
            return Capacity(spec, blocks, length)  # the scheduler looks at what each request keeps
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
    most = config.scheduler.max_num_batched_tokens
    if not chunked and most < length:
        raise ValueError(
            f"without chunked prefill, max_num_batched_tokens ({most}) must be at least "
            f"max_model_len ({length})"
        )
    return Capacity(spec, blocks, length)
