"""Asking a shared store: what it has, how long that is waited for, what becomes of faults."""

from __future__ import annotations

import threading
import time

from vllm.kv.evict import make
from vllm.kv.lane import BREAKER_FAILURES, BREAKER_SECONDS
from vllm.kv.lineage import Key
from vllm.kv.retention import Uses
from vllm.kv.seek import BATCH, MAX_QUESTIONS, PATIENCE, Seeker
from vllm.kv.shelf import Shelf

from .faulty import HeldClock

KEYS = [Key(bytes([i]) * 32) for i in range(200)]


class Store:
    name = "shared"

    def __init__(self, count: int) -> None:
        self.there = set(KEYS[:count])
        self.calls: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.fault: Exception | None = None

    def contains(self, keys: list[Key]) -> list[bool]:
        assert self.open.wait(5)
        self.calls.append(len(keys))
        if self.fault is not None:
            raise self.fault
        return [key in self.there for key in keys]


def until(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_finds_the_leading_run_and_asks_no_further():
    for count in (0, 1, BATCH - 1, BATCH, BATCH + 1, 150, 200):
        store = Store(count)
        seeker = Seeker(store, asynchronous=False)
        seeker.ask(1, KEYS)
        assert seeker.poll() == KEYS[:count] and not seeker.asking(1)
        assert sum(store.calls) <= min(len(KEYS), count - count % BATCH + BATCH)
        store.there.discard(KEYS[0])
        seeker.ask(2, KEYS)
        assert seeker.poll() == []


def test_is_waited_for_a_moment_only_and_learnt_late():
    clock, store = HeldClock(), Store(3)
    store.open.clear()
    seeker = Seeker(store, clock=clock)
    seeker.ask(1, KEYS)
    assert seeker.asking(1) and not seeker.asking(2)
    clock.now += PATIENCE + 0.1
    assert not seeker.asking(1)
    seeker.ask(2, KEYS)  # it hangs: nothing more is asked
    assert not seeker.asking(2)
    store.open.set()
    found: list[Key] = []
    until(lambda: found.extend(seeker.poll()) or found)
    assert found == KEYS[:3]
    seeker.ask(3, KEYS)
    assert seeker.asking(3)
    until(lambda: not seeker.poll() or True)
    seeker.check()
    seeker.close()


def test_one_that_is_gone_is_not_waited_for_and_leaves_nothing():
    store = Store(3)
    store.open.clear()
    seeker = Seeker(store)
    seeker.ask(1, KEYS)
    seeker.forget(1)
    assert not seeker.asking(1)
    seeker.ask(1, KEYS[:1])  # the number may not come again, but if it did
    store.open.set()
    until(lambda: seeker.poll() or not seeker._unanswered)
    until(lambda: seeker.poll() or not seeker._unanswered)
    assert not seeker.asking(1)
    seeker.check()
    seeker.close()


def test_failures_leave_it_alone_for_a_while():
    for fault in (OSError("gone"), RuntimeError("broken")):
        clock, store = HeldClock(), Store(3)
        store.fault = fault
        seeker = Seeker(store, asynchronous=False, clock=clock)
        for seq in range(BREAKER_FAILURES + 5):
            seeker.ask(seq, KEYS)
            assert seeker.poll() == [] and not seeker.asking(seq)
        assert len(store.calls) == BREAKER_FAILURES
        clock.now += BREAKER_SECONDS
        store.fault = None
        seeker.ask(99, KEYS)
        assert seeker.poll() == KEYS[:3]


def test_questions_are_bounded():
    store = Store(1)
    store.open.clear()
    seeker = Seeker(store, clock=HeldClock())
    for seq in range(MAX_QUESTIONS + 10):
        seeker.ask(seq, KEYS[:1])
    assert len(seeker._unanswered) == MAX_QUESTIONS
    store.open.set()
    seeker.close()


def test_a_shelf_learns_what_others_wrote_within_its_capacity():
    shelf = Shelf(2, make("lru"), Uses(100, 16))
    for key in KEYS[:3]:
        shelf.learn(key, on_device=False)
        shelf.check()
    assert len(shelf) == 2 and KEYS[2] in shelf and KEYS[0] not in shelf
    shelf.spoil(KEYS[2])
    assert KEYS[2] not in shelf
    shelf.learn(KEYS[2], on_device=True)  # it is said to be there again
    shelf.check()
    assert KEYS[2] in shelf and len(shelf) == 2
    for key in KEYS[1:3]:
        shelf.pin(key)
    shelf.learn(KEYS[5], on_device=False)
    assert KEYS[5] not in shelf
    shelf.check()
