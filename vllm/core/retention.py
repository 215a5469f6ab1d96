"""How long, and how eagerly, a request wants parts of its prompt to stay cached."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from vllm.core.errors import VLLMValidationError

DEFAULT_PRIORITY = 35  # of 0 to 100; TensorRT-LLM's scale and default
MAX_RANGES = 32
MAX_TTL = 7 * 86400.0  # seconds


class Retention(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, frozen=True):
    """A range of the sequence's tokens, [start, end), and the priority of its blocks.

    A priority above the default one stays longer, one below goes sooner. `ttl` seconds after the
    request has ended it falls to the default; None: never.
    """

    start: int = 0
    end: int | None = None  # None: to the sequence's end, output included
    priority: int = DEFAULT_PRIORITY
    ttl: float | None = None


def parse(given: Any, field: str = "kv_retention") -> list[Retention]:
    """Raises VLLMValidationError, naming the field, for what is not a list of ranges."""
    if given is None:
        return []
    try:
        ranges = msgspec.convert(given, list[Retention])
    except msgspec.ValidationError as error:
        raise VLLMValidationError(f"{field}: {error}", parameter=field) from error
    if len(ranges) > MAX_RANGES:
        raise VLLMValidationError(f"{field} takes at most {MAX_RANGES} ranges", parameter=field)
    for i, each in enumerate(ranges):
        _verify(each, f"{field}.{i}")
    return ranges


def _verify(each: Retention, at: str) -> None:
    if each.start < 0:
        raise VLLMValidationError(
            "start must be at least 0", parameter=f"{at}.start", value=each.start
        )
    if each.end is not None and not each.start < each.end < 2**63:
        raise VLLMValidationError("end must be above start", parameter=f"{at}.end", value=each.end)
    if not 0 <= each.priority <= 100:
        raise VLLMValidationError(
            "priority must be between 0 and 100",
            parameter=f"{at}.priority",
            value=each.priority,
        )
    if each.ttl is not None and not (math.isfinite(each.ttl) and 0 < each.ttl <= MAX_TTL):
        raise VLLMValidationError(
            f"ttl must be above 0 and at most {MAX_TTL:.0f} seconds",
            parameter=f"{at}.ttl",
            value=each.ttl,
        )
