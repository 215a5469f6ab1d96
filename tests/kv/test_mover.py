"""The mover and the load-or-compute decision: what fails or hangs stays where it is."""

from __future__ import annotations

import threading
import time

import pytest

from vllm.kv.cost import LoadCost
from vllm.kv.lane import BREAKER_FAILURES, BREAKER_SECONDS, Breaker, Job, Kind, Rate
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover

from .faulty import FaultyTier, HeldClock, SteppedMover

A, B = Key(b"a" * 32), Key(b"b" * 32)


def store(tier: str, key: Key = A, data: bytes = b"12345678") -> Job:
    return Job(Kind.STORE, tier, [key], [memoryview(bytearray(data))])


def load(tier: str, key: Key = A) -> Job:
    return Job(Kind.LOAD, tier, [key], [memoryview(bytearray(8))])


def both(**options) -> tuple[Mover, FaultyTier, FaultyTier]:
    tiers = FaultyTier("host", 4), FaultyTier("disk", 4)
    return Mover(list(tiers), **options), *tiers


def settle(mover: Mover, jobs: int) -> list[Job]:
    done: list[Job] = []
    end = time.monotonic() + 10
    while len(done) < jobs:
        assert time.monotonic() < end, "a job does not end"
        mover.wait(0.05)
        done += mover.poll()[0]
    return done


@pytest.mark.parametrize("asynchronous", [True, False])
def test_bytes_go_and_come_back(asynchronous):
    mover, *_ = both(asynchronous=asynchronous)
    mover.submit(store("host"))
    assert settle(mover, 1)[0].ok == [True]
    job = load("host")
    mover.submit(job)
    settle(mover, 1)
    assert bytes(job.buffers[0]) == b"12345678"
    lane = mover.lanes["host"]
    assert (lane.bytes_loaded, lane.bytes_stored, lane.waiting) == (8, 8, 0)
    assert mover.load_bandwidth(lane.tier.name) > 0
    assert not mover.busy
    mover.shutdown()


@pytest.mark.parametrize("fault", ["os", "crash"])
def test_what_a_tier_raises_costs_that_block_only(fault):
    mover, host, _ = both(asynchronous=False)
    host.writes.append(fault)
    host.deletes.append(fault)
    job = Job(Kind.STORE, "host", [A, B], [memoryview(bytearray(8))] * 2, delete_first=[A])
    mover.submit(job)
    assert mover.poll() == ([job], [])
    assert job.ok == [False, True]
    assert mover.lanes["host"].failures == 1


def test_a_tier_that_hangs_holds_up_no_other_and_no_end():
    mover, _, disk = both(deadline=0.05)
    go = threading.Event()
    disk.pause = lambda: go.wait(20)
    hung = load("disk")
    mover.submit(hung)
    mover.submit(store("host"))
    assert [job.tier for job in settle(mover, 1)] == ["host"]
    time.sleep(0.06)
    assert mover.poll() == ([], [hung])
    assert mover.poll() == ([], []), "it is late once"
    assert not mover.usable("disk"), "each further job would hold on to its buffers"
    assert mover.usable("host")
    start = time.monotonic()
    mover.shutdown(0.2)
    assert time.monotonic() - start < 2
    go.set()


def test_late_and_then_done():
    clock = HeldClock()
    mover = SteppedMover([FaultyTier("disk", 2)], clock=clock)
    job = load("disk")
    mover.submit(job)
    mover.begin()
    clock.now += 2.5
    assert mover.poll() == ([], [job])
    assert mover.busy
    mover.finish()
    assert mover.poll() == ([job], [])
    lane = mover.lanes["disk"]
    assert (lane.deadline_misses, lane.failures, lane.late) == (1, 1, 0)
    assert not mover.busy


def test_a_tier_that_is_always_late_loses_its_trust_though_it_delivers():
    clock = HeldClock()
    mover = SteppedMover([FaultyTier("disk", 2)], clock=clock)
    mover.submit(store("disk"))
    mover.finish()
    mover.poll()
    for _ in range(BREAKER_FAILURES):
        assert mover.usable("disk")
        mover.submit(load("disk"))
        mover.begin()
        clock.now += 3
        mover.poll()
        mover.finish()
        mover.poll()
    assert not mover.usable("disk")


def test_the_breaker_opens_longer_each_time_and_success_closes_it():
    clock = HeldClock()
    tier = FaultyTier("disk", 2)
    mover = Mover([tier], clock=clock, asynchronous=False)
    mover.submit(store("disk"))

    def fail():
        tier.reads.append("os")
        mover.submit(load("disk"))
        mover.poll()

    for penalty in (BREAKER_SECONDS, 2 * BREAKER_SECONDS):
        for _ in range(BREAKER_FAILURES):
            assert mover.usable("disk")
            fail()
        assert not mover.usable("disk")
        assert mover.accepts_store("disk"), "stores have not failed"
        clock.now += penalty - 0.01
        assert not mover.usable("disk")
        clock.now += 0.02
    fail()
    mover.submit(load("disk"))
    mover.poll()
    assert mover.lanes["disk"].loads == Breaker(0, clock.now - 0.01, BREAKER_SECONDS)


def test_a_key_that_is_not_there_is_no_failure_of_the_tier():
    """Another process may have deleted a file: the load fails, and the tier stays in use."""
    mover = Mover([FaultyTier("disk", 2)], clock=HeldClock(), asynchronous=False)
    for _ in range(2 * BREAKER_FAILURES):
        job = load("disk")
        mover.submit(job)
        assert mover.poll() == ([job], []) and job.ok == [False]
    assert mover.usable("disk")
    assert mover.lanes["disk"].failures == 0


def test_a_disk_that_is_full_is_still_read():
    mover = Mover([FaultyTier("disk", 0)], clock=HeldClock(), asynchronous=False)
    for _ in range(BREAKER_FAILURES):
        assert mover.accepts_store("disk")
        mover.submit(store("disk"))
        mover.poll()
    assert not mover.accepts_store("disk")
    assert mover.usable("disk")


def test_loads_go_before_stores():
    mover = SteppedMover([FaultyTier("disk", 9)], lanes=1)
    jobs = [store("disk"), store("disk", B), load("disk"), load("disk", B)]
    for job in jobs:
        mover.submit(job)
    mover.finish()
    assert mover.poll()[0] == [jobs[2], jobs[3], jobs[0], jobs[1]]


def test_a_load_that_has_not_begun_is_withdrawn_at_its_deadline():
    """So behind a job that hangs nothing holds on to its blocks, and the tier is not blamed."""
    clock = HeldClock()
    mover = SteppedMover([FaultyTier("disk", 2)], lanes=1, clock=clock)
    hung, queued = load("disk"), load("disk", B)
    mover.submit(hung)
    mover.begin()
    mover.submit(queued)
    clock.now += 2.5
    assert mover.poll() == ([queued], [hung])
    assert queued.withdrawn and queued.ok == [False]
    lane = mover.lanes["disk"]
    assert (lane.deadline_misses, lane.failures, lane.waiting, lane.late) == (2, 1, 1, 1)
    assert lane.loading_bytes == hung.num_bytes
    mover.finish()
    assert mover.poll() == ([hung], [])
    assert not mover.busy and lane.loading_bytes == 0 and not mover.faulty["disk"].calls[1:]


def test_a_store_is_late_from_its_beginning():
    """A long queue is no fault; a store that hangs keeps loads away, which would hang too."""
    clock = HeldClock()
    mover = SteppedMover([FaultyTier("disk", 9)], lanes=1, clock=clock)
    first, second = store("disk"), store("disk", B)
    mover.submit(first)
    mover.submit(second)
    clock.now += 10
    assert mover.poll() == ([], [])
    mover.begin()
    clock.now += 2.5
    assert mover.poll() == ([second], [first])
    assert not mover.usable("disk") and not mover.accepts_store("disk")
    mover.finish()
    assert mover.poll() == ([first], [])
    assert mover.usable("disk") and mover.accepts_store("disk")


def test_stores_behind_one_that_hangs_are_withdrawn():
    clock = HeldClock()
    mover = SteppedMover([FaultyTier("disk", 9)], lanes=1, clock=clock)
    hung, queued, loading = store("disk"), store("disk", B), load("disk", B)
    mover.submit(hung)
    mover.begin()
    mover.submit(queued)
    mover.submit(loading)
    clock.now += 1.0
    assert mover.poll() == ([], [])
    clock.now += 1.5
    loading.submitted = clock.now
    assert mover.poll() == ([queued], [hung])
    assert queued.withdrawn and queued.ok == [False]
    mover.finish()
    assert mover.poll() == ([hung, loading], [])
    lane = mover.lanes["disk"]
    assert (lane.deadline_misses, lane.waiting, lane.late) == (1, 0, 0)


def test_a_full_queue_refuses_stores():
    mover = SteppedMover([FaultyTier("disk", 9)], max_queued=2)
    for key in (A, B):
        assert mover.accepts_store("disk")
        mover.submit(store("disk", key))
    assert not mover.accepts_store("disk")
    mover.finish()
    mover.poll()
    assert mover.accepts_store("disk")


def test_load_when_it_is_faster():
    cost = LoadCost(block_bytes=160, block_size=16)
    assert cost.worth_loading(16, 0)
    assert cost.worth_loading(16, 1.0), "as long as the speed of prefill is unknown"
    cost.prefilled(100, 1.0)
    assert cost.worth_loading(16, 1001.0)
    assert not cost.worth_loading(16, 999.0)
    assert cost.worth_loading(16, 2001.0, queued=160)
    assert not cost.worth_loading(16, 1999.0, queued=160), "it is behind others"
    assert not cost.worth_loading(1600, 10_000.0, within=1.5), "it would be given up"
    cost.prefilled(100, 0.5)
    assert cost.prefill_rate == pytest.approx((80 + 100) / (0.8 + 0.5))
    cost.prefilled(1, 0.5)
    assert cost.prefill_rate > 90, "a short step says little"
    cost.chose(load=True)
    cost.chose(load=False)
    cost.chose(load=True)
    cost.chose(load=False, both=True)
    assert (cost.chose_load, cost.chose_compute, cost.chose_both) == (2, 1, 1)
    least = LoadCost(160, 16, min_tokens=32)
    assert [least.worth_loading(n, 0) for n in (16, 32)] == [False, True]


def test_what_passes_at_the_same_time_counts_together():
    rate = Rate()
    assert rate.known(0.0) == 0
    assert rate.add(100, 0.0, 1.0) == 1.0
    assert rate.known(1.0) == pytest.approx(100)
    assert rate.add(100, 0.0, 1.0) == 0.0
    for i in range(1, 100):
        rate.add(100, i, i + 1)
        rate.add(100, i + 0.5, i + 1)
    assert rate.known(100.0) == pytest.approx(200, rel=0.2)
    assert rate.known(161.0) == 0, "that was long ago"


def test_both_where_neither_is_much_faster():
    cost = LoadCost(block_bytes=160, block_size=16)
    assert cost.front(160, 1000.0) == 0, "as long as the speed of prefill is unknown"
    cost.prefilled(100, 1.0)
    assert cost.front(160, 1000.0) == 80, "as fast: half and half"
    assert cost.front(160, 2000.0) == 48, "a third, in whole blocks"
    assert cost.front(160, 500.0) == 96
    assert cost.front(160, 10_000.0) == 0, "loading alone takes hardly longer"
    assert cost.front(160, 100.0) == 0, "computing alone"
    assert cost.front(160, 1000.0, queued=800) == 112, "half a load's time is gone before"
    assert cost.front(160, 1000.0, within=0.5) == 0
    assert cost.front(16, 1000.0) == 0
    assert LoadCost(160, 16, min_tokens=32).front(160, 1000.0) == 0


def test_a_job_that_is_revoked_leaves_its_buffers_alone():
    """So that those who need the blocks need not wait for a disk that hangs."""
    clock = HeldClock()
    mover = SteppedMover([FaultyTier("disk", 9)], lanes=2, clock=clock)
    mover.submit(store("disk"))
    mover.finish()
    mover.poll()
    loading, storing = load("disk"), store("disk", B)
    mover.submit(loading)
    mover.submit(storing)
    mover.begin()
    mover.advance("disk", 0)  # both are in the tier now
    mover.advance("disk", 1)
    clock.now += 2.5
    assert mover.poll() == ([], [loading, storing])
    for job in (loading, storing):
        job.buffers[0][:] = b"x" * len(job.buffers[0])
    mover.finish()
    assert mover.poll() == ([loading, storing], [])
    assert bytes(loading.buffers[0]) == b"x" * len(loading.buffers[0])
    assert not loading.ok[0]
    tier = mover.faulty["disk"]
    assert storing.ok == [True], "it had its own copy"
    assert bytes(tier.content[tier.slot[B]]) == b"12345678"
