"""Per-request compression of the KV cache: what bodies ask for, what answers tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, Field

from vllm.config import VllmConfig
from vllm.config.compression import refuse_wishes
from vllm.core.compression import MAX_SPANS, WISHES
from vllm.outputs import CompletionOutput
from vllm.sampling_params import SamplingParams

Count = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Span = Annotated[list[Count], Field(min_length=2, max_length=2)]

FIELDS = (*WISHES, "reference_token_ids")
PASSED_ON = (
    *FIELDS,
    "protected_messages",
    "shared_prefix",
)  # what other families' bodies may carry, too


class CompressionFields(BaseModel):
    """Needs a server with --enable-kvc, but for reference_token_ids; None takes its defaults."""

    max_cache_tokens: Annotated[int, Field(ge=-1, lt=2**31, strict=True)] | None = None
    target_compression_rate: float | None = None
    protected_window_size: Count | None = None
    compress_once: Annotated[bool, Field(strict=True)] | None = None
    metric_collection_buffer_size: Count | None = None
    compression_metric: str | None = None
    sinks: Count | None = None
    protected_spans: Annotated[list[Span], Field(max_length=MAX_SPANS)] | None = None
    shared_prefix_tokens: Annotated[Count, Field(ge=1)] | None = None
    reference_token_ids: Annotated[list[Count], Field(min_length=1)] | None = None


def passed_on(extra: dict[str, Any] | None) -> dict[str, Any]:
    """The fields above out of a body of another family, which knows them not."""
    return {name: extra[name] for name in PASSED_ON if extra and extra.get(name) is not None}


def check_compression(config: VllmConfig, params: SamplingParams, prompt_len: int) -> None:
    """What the engine would refuse, before a stream begins. Raises VLLMValidationError."""
    if config.compression is None:
        refuse_wishes(params)
    else:
        config.compression.resolve(params, prompt_len)


class KVCompression(msgspec.Struct):
    """`usage.kv_compression`. KVs are counted over layers and heads, and all choices."""

    logical_kvs: int
    kept_kvs: int
    ratio: float
    times_compressed: int


def usage_field(output: CompletionOutput) -> dict[str, Any]:
    """The same as part of another family's usage."""
    kvs = told([output])
    return {} if kvs is None else {"kv_compression": msgspec.to_builtins(kvs)}


def told(outputs: Iterable[CompletionOutput]) -> KVCompression | None:
    """None where nothing could be compressed."""
    stats = [o.kv_compression for o in outputs if o.kv_compression is not None]
    if not stats:
        return None
    logical, kept = sum(s.logical for s in stats), sum(s.kept for s in stats)
    ratio = round(logical / max(1, kept), 3)
    return KVCompression(logical, kept, ratio, sum(s.times for s in stats))
