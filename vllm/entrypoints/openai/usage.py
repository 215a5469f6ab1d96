"""The `usage` object, and when streams carry it."""

from __future__ import annotations

import msgspec

from vllm.entrypoints.openai.protocol import GenerationBody


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


def usage(prompt: int, completion: int, cached: int | None) -> Usage:
    """Cached tokens are always told: they are what this engine is for."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=None if cached is None else PromptTokensDetails(cached),
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
