"""Moves blocks between the device and the tiers, on threads of its own, and reports.

Asynchrony, deadlines, back-pressure and measurement are written here once, for all tiers. The
engine's loop submits jobs and polls for those that are done; it never waits for one. Each tier has
its own queue and threads, so a disk that hangs holds nobody else up.

With `asynchronous=False` a job is carried out where it is submitted, for comparison.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

import numpy as np

from vllm.core.clock import Clock, monotonic
from vllm.kv.lane import Job, Kind, Lane
from vllm.kv.lineage import Key
from vllm.kv.tiers import Tier

logger = logging.getLogger(__name__)


class Mover:
    """`threads` a tier; at most `max_queued` jobs wait a tier before stores are refused.

    A load has `deadline` seconds from its submission, since somebody waits for it; a store from its
    beginning. Then it is withdrawn if it has not begun, and else revoked: its thread touches the
    buffers no more, however long the tier hangs. Stores behind it are withdrawn too: they keep
    blocks from being evicted.
    """

    def __init__(
        self,
        tiers: list[Tier],
        *,
        threads: int = 2,
        max_queued: int = 64,
        deadline: float = 2.0,
        asynchronous: bool = True,
        clock: Clock = monotonic,
    ) -> None:
        self.lanes = {tier.name: Lane(tier) for tier in tiers}
        self.deadline = deadline
        self._max_queued = max_queued
        self.asynchronous = asynchronous
        self._clock = clock
        self._pending: dict[Job, None] = {}
        self._done: deque[Job] = deque()
        self._wake = threading.Event()
        self._own = threading.local()  # each thread's memory for one blob
        self._threads: list[threading.Thread] = []
        for lane in self.lanes.values() if asynchronous else ():
            for i in range(threads):
                thread = threading.Thread(
                    target=self._work,
                    args=(lane,),
                    daemon=True,
                    name=f"kv-{lane.tier.name}-{i}",
                )
                thread.start()
                self._threads.append(thread)

    @property
    def busy(self) -> bool:
        return bool(self._pending) or bool(self._done)

    def usable(self, tier: str) -> bool:
        """Whether the tier may be loaded from: its breaker is closed, and no job seems to hang.

        (Each further job would hold on to its buffers.)
        """
        lane = self.lanes[tier]
        return lane.late == 0 and lane.loads.closed(self._clock())

    def load_bandwidth(self, tier: str) -> float:
        """Bytes a second, as measured lately; 0: not known."""
        return self.lanes[tier].load_rate.known(self._clock())

    def accepts_store(self, tier: str) -> bool:
        lane = self.lanes[tier]
        free = lane.late == 0 and lane.waiting < self._max_queued
        return free and lane.stores.closed(self._clock())

    def submit(self, job: Job) -> None:
        """Start a job. Stores must have been accepted by `accepts_store`."""
        lane = self.lanes[job.tier]
        job.submitted = self._clock()
        self._pending[job] = None
        lane.waiting += 1
        lane.loading_bytes += job.num_bytes * (job.kind is Kind.LOAD)
        if self.asynchronous:
            lane.jobs.put(job)
        else:
            job.begun = job.submitted
            self._carry_out(lane, job)

    def wait(self, seconds: float) -> None:
        """Until a job is done, at most so long."""
        if not self._done:
            self._wake.wait(seconds)
        self._wake.clear()

    def poll(self) -> tuple[list[Job], list[Job]]:
        """(jobs that are done or were withdrawn, jobs that are revoked now).

        Those are reported as done when they end, too: until then the tier is at work on their keys.
        """
        done: list[Job] = []
        while self._done:
            job = self._done.popleft()
            self._account(job)
            done.append(job)
        now, late = self._clock(), []
        for job in [job for job in self._pending if self._is_late(job, now)]:
            job.late = True
            lane = self.lanes[job.tier]
            lane.deadline_misses += 1
            if self._withdraw(job):
                done.append(job)
                continue
            job.revoke()
            lane.late += 1
            self._fail(lane, job.kind)
            late.append(job)
            stores = [j for j in self._pending if j.tier == job.tier and j.kind is Kind.STORE]
            done += [store for store in stores if self._withdraw(store)]
        return done, late

    def _withdraw(self, job: Job) -> bool:
        """End a job that has not begun."""
        if not self.lanes[job.tier].jobs.withdraw(job):
            return False
        job.ok = [False] * len(job.keys)
        self._account(job)
        return True

    def _is_late(self, job: Job, now: float) -> bool:
        since = job.submitted if job.kind is Kind.LOAD else job.begun
        return not job.late and since is not None and now > since + self.deadline

    def _account(self, job: Job) -> None:
        """The job's end, in its lane's books."""
        del self._pending[job]
        lane = self.lanes[job.tier]
        lane.waiting -= 1
        lane.loading_bytes -= job.num_bytes * (job.kind is Kind.LOAD)
        if job.withdrawn:
            return
        lane.late -= job.late
        lane.measure(job)
        if job.late:
            return
        if job.broken:
            self._fail(lane, job.kind)
        elif all(job.ok):
            lane.breaker(job.kind).succeed()

    def _fail(self, lane: Lane, kind: Kind) -> None:
        lane.failures += 1
        breaker = lane.breaker(kind)
        seconds = breaker.penalty
        if breaker.fail(self._clock()):
            name = lane.tier.name
            logger.warning("The %s tier's %ss fail: none for %.0f s", name, kind.value, seconds)

    def _work(self, lane: Lane) -> None:
        while (job := lane.jobs.take(self._clock)) is not None:
            self._carry_out(lane, job)

    def _carry_out(self, lane: Lane, job: Job) -> None:
        ok = [False] * len(job.keys)
        for key in job.delete_first:
            delete(lane.tier, key)
        for i, (key, buffer) in enumerate(zip(job.keys, job.buffers, strict=True)):
            ok[i] = self._one(lane.tier, job, key, buffer)
        job.ended = self._clock()
        job.ok = ok
        self._done.append(job)
        self._wake.set()

    def _one(self, tier: Tier, job: Job, key: Key, buffer: memoryview) -> bool:
        try:
            if job.kind is Kind.LOAD:
                return self._load(tier, job, key, buffer)
            return self._store(tier, job, key, buffer)
        except OSError as error:
            if not job.broken:  # the first of a job tells for all
                logger.warning(
                    "The %s tier cannot %s a block: %s", tier.name, job.kind.value, error
                )
            job.broken = True
        except Exception:
            if not job.broken:
                logger.exception("A %s of the %s tier failed", job.kind.value, tier.name)
            job.broken = True
        return False

    def _load(self, tier: Tier, job: Job, key: Key, buffer: memoryview) -> bool:
        own = buffer if tier.in_memory else self._memory(len(buffer))
        if not tier.in_memory and not tier.read(key, own):
            return False
        with job.gate:
            if job.revoked:
                return False
            if tier.in_memory:
                return tier.read(key, buffer)
            copy(buffer, own)
            return True

    def _store(self, tier: Tier, job: Job, key: Key, buffer: memoryview) -> bool:
        with job.gate:
            if job.revoked:
                return False
            if tier.in_memory:
                tier.write(key, buffer)
                return True
            own = self._memory(len(buffer))
            copy(own, buffer)
        tier.write(key, own)
        return True

    def _memory(self, size: int) -> memoryview:
        """What a tier that may hang is given in place of a buffer that others wait for."""
        if not hasattr(self._own, "memory"):
            self._own.memory = memoryview(bytearray(size))
        memory: memoryview = self._own.memory
        return memory

    def shutdown(self, timeout: float = 2.0) -> None:
        """End the threads; one that hangs in a tier is left behind (they are daemons)."""
        for lane in self.lanes.values():
            lane.jobs.close()
        end = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()))
        for lane in self.lanes.values():
            lane.tier.close()


def copy(target: memoryview, source: memoryview) -> None:
    """Without holding the interpreter up, as a slice's assignment would."""
    np.copyto(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))


def delete(tier: Tier, key: Key) -> None:
    """Have the tier forget the key. If it cannot, that much of it is lost until a restart."""
    try:
        tier.delete(key)
    except OSError as error:
        logger.warning("The %s tier cannot delete a block: %s", tier.name, error)
    except Exception:
        logger.exception("A deletion in the %s tier failed", tier.name)
