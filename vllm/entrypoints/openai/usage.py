"""The `usage` object, and when streams carry it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from vllm.entrypoints.openai.compression import KVCompression
from vllm.entrypoints.openai.protocol import GenerationBody
from vllm.outputs import RequestOutput


class PromptTokensDetails(msgspec.Struct, omit_defaults=True):
    cached_tokens: int
    cached_tokens_by_source: dict[str, int] = {}  # by tier, or compressed


class Usage(msgspec.Struct, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    kv_compression: KVCompression | None = None


def usage(
    prompt: int,
    completion: int,
    results: Iterable[RequestOutput | None],
    kvs: KVCompression | None = None,
) -> Usage:
    """Cached tokens are always told: they are what this engine is for.

    results: the latest of each prompt; None where none has come yet.
    """
    cached, sources = 0, Counter[str]()
    for result in results:
        if result is not None:
            cached += result.num_cached_tokens or 0
            sources.update(result.cached_by_source)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached, dict(sources)),
        kv_compression=kvs,
    )


class UsageWish:
    """What a streaming client wants to see of the usage."""

    def __init__(self, body: GenerationBody, forced: bool) -> None:
        options = body.stream_options
        self.at_end = forced or (options is not None and options.include_usage)
        # As in vLLM, usage in each chunk is only given to those who want it at the end too.
        self.in_chunks = forced or (
            options is not None and options.include_usage and options.continuous_usage_stats
        )
