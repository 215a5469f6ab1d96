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
    """Raises VLLMValidationError, naming the field, for what is not a range or a list of them."""
    if given is None:
        return []
    one = isinstance(given, (dict, Retention))
    try:
        ranges = msgspec.convert([given] if one else given, list[Retention])
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


class CacheHints(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a request tells the cache about itself."""

    retention: tuple[Retention, ...] = ()
    workload: str = ""  # what kind of request it is, in the client's words
    session: str = ""  # which conversation it belongs to
    mode: str = ""  # single or multi: whether it has turns


NO_HINTS = CacheHints()
HINT_FIELDS = ("kv_retention", "cache_control", "session_id", "workload", "prefix_mode")
EPHEMERAL_PRIORITY = 70
EPHEMERAL_TTL = {"5m": 300.0, "1h": 3600.0}


def hints(given: dict[str, Any]) -> CacheHints:
    """From the fields of a request, of which any may be missing.

    kv_retention: a list of ranges. cache_control: Anthropic's {"type": "ephemeral", "ttl": "5m"},
    which is a priority of 70 for the whole prompt for so long. Raises VLLMValidationError, naming
    the field.
    """
    ranges = parse(given.get("kv_retention"))
    control = given.get("cache_control")
    if control is not None:
        ranges.append(_ephemeral(control))
    names = {}
    for field, most in (("session_id", 128), ("workload", 64), ("prefix_mode", 16)):
        text = given.get(field) or ""
        if not isinstance(text, str) or len(text) > most or not text.isprintable():
            raise VLLMValidationError(
                f"{field} must be at most {most} printable characters", parameter=field
            )
        names[field] = text
    if not ranges and not any(names.values()):
        return NO_HINTS
    return CacheHints(tuple(ranges), names["workload"], names["session_id"], names["prefix_mode"])


def _ephemeral(control: Any) -> Retention:
    if not isinstance(control, dict) or control.get("type") != "ephemeral":
        raise VLLMValidationError(
            'cache_control must be {"type": "ephemeral"}', parameter="cache_control"
        )
    ttl = control.get("ttl", "5m")
    if not isinstance(ttl, str) or ttl not in EPHEMERAL_TTL:
        raise VLLMValidationError(
            f"cache_control.ttl must be one of {', '.join(EPHEMERAL_TTL)}",
            parameter="cache_control.ttl",
            value=ttl,
        )
    return Retention(priority=EPHEMERAL_PRIORITY, ttl=EPHEMERAL_TTL[ttl])
