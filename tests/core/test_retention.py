"""What requests may tell the cache, and what of it holds for which block."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.core.errors import VLLMValidationError
from vllm.core.retention import DEFAULT_PRIORITY, NO_HINTS, CacheHints, Retention, hints
from vllm.kv.lineage import Key
from vllm.kv.retention import FIRST_TO_GO, LAST_TO_GO, Uses, wish

A, B = Key(b"a" * 32), Key(b"b" * 32)


def test_nothing_is_told() -> None:
    assert hints({}) is NO_HINTS
    assert hints({"kv_retention": None, "session_id": "", "prompt": "x"}) is NO_HINTS


def test_everything_is_told() -> None:
    told = hints(
        {
            "kv_retention": {"priority": 80, "ttl": 30},
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
            "session_id": "s",
            "workload": "qa",
            "prefix_mode": "multi",
        }
    )
    ranges = (Retention(priority=80, ttl=30.0), Retention(priority=70, ttl=3600.0))
    assert told == CacheHints(ranges, "qa", "s", "multi")


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("kv_retention", 5, "kv_retention"),
        ("kv_retention", [{"priority": 101}], "kv_retention.0.priority"),
        ("kv_retention", [{"priority": -1}], "kv_retention.0.priority"),
        ("kv_retention", [{"start": -1}], "kv_retention.0.start"),
        ("kv_retention", [{}, {"start": 4, "end": 4}], "kv_retention.1.end"),
        ("kv_retention", {"ttl": 0}, "kv_retention.0.ttl"),
        ("kv_retention", {"ttl": 1e9}, "kv_retention.0.ttl"),
        ("kv_retention", {"priorty": 3}, "kv_retention"),
        ("kv_retention", [{}] * 33, "kv_retention"),
        ("cache_control", "ephemeral", "cache_control"),
        ("cache_control", {"type": "forever"}, "cache_control"),
        ("cache_control", {"type": "ephemeral", "ttl": "2h"}, "cache_control.ttl"),
        ("session_id", "x" * 129, "session_id"),
        ("session_id", "a\nb", "session_id"),
        ("workload", 7, "workload"),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, value: Any, named: str) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        hints({field: value})
    assert caught.value.parameter == named


def test_a_range_holds_for_all_that_it_needs() -> None:
    """A block is only worth what comes before it is there: a high range reaches to the start."""
    high = (Retention(start=32, end=48, priority=90, ttl=5.0),)
    assert [wish(high, at) for at in (0, 16, 32, 48)] == [(90, 5.0)] * 3 + [
        (DEFAULT_PRIORITY, math.inf)
    ]
    low = (Retention(start=32, end=48, priority=10),)
    assert [wish(low, at)[0] for at in (0, 32, 48)] == [DEFAULT_PRIORITY, 10, DEFAULT_PRIORITY]
    both = (Retention(0, 16, 20), Retention(0, 64, 60, ttl=9.0))
    assert wish(both, 0) == (60, math.inf)
    assert wish(both, 16) == (60, 9.0)


def use(uses: Uses, now: float, *ranges: Retention) -> tuple[int, float]:
    uses.now = now
    (told,) = uses.used([A], CacheHints(ranges))
    assert uses.last(A) == told
    return told.priority, told.expires


def test_the_highest_wish_holds_until_it_expires() -> None:
    uses = Uses(10, 16)
    assert use(uses, 1.0, Retention(priority=60, ttl=10)) == (60, 11.0)
    assert use(uses, 2.0) == (60, 11.0), "one who asks for nothing takes nothing away"
    assert use(uses, 3.0, Retention(priority=50, ttl=99)) == (60, 11.0)
    assert use(uses, 4.0, Retention(priority=60, ttl=10)) == (60, 14.0)
    assert use(uses, 5.0, Retention(priority=80, ttl=1)) == (80, 6.0)
    assert use(uses, 7.0) == (DEFAULT_PRIORITY, math.inf)
    assert use(uses, 8.0, Retention(priority=5)) == (5, math.inf)


def test_verbs_hold_until_the_next_use() -> None:
    uses = Uses(10, 16)
    uses.rank(A, FIRST_TO_GO, math.inf)
    assert use(uses, 1.0) == (DEFAULT_PRIORITY, math.inf)
    uses.rank(A, LAST_TO_GO, 5.0)
    assert use(uses, 2.0) == (LAST_TO_GO, 5.0)
    assert use(uses, 6.0) == (DEFAULT_PRIORITY, math.inf)


@given(st.lists(st.sampled_from([A, B, Key(b"c" * 32), Key(b"d" * 32)]), max_size=30))
def test_the_memory_is_bounded(keys: list[Key]) -> None:
    uses = Uses(2, 16)
    for now, key in enumerate(keys):
        uses.now = float(now)
        uses.used([key])
        assert len(uses) <= 2
        assert uses.last(key).time == now
