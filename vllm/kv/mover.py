"""Moves blocks between the device and the tiers, on threads of its own, and reports.

Asynchrony, deadlines, back-pressure and measurement are written here once, for all tiers. The
engine's loop submits jobs and polls for those that are done; it never waits for one. Each tier has
its own queue and threads, so a disk that hangs holds nobody else up.

With `asynchronous=False` a job is carried out where it is submitted, for comparison.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from vllm.core.clock import Clock, monotonic
from vllm.kv.lineage import Key
from vllm.kv.tiers import Tier

logger = logging.getLogger(__name__)

BREAKER_FAILURES = 3
BREAKER_SECONDS, BREAKER_MAX_SECONDS = 1.0, 60.0
SMOOTHING = 0.2  # weight of the newest measurement


class Kind(Enum):
    LOAD = "load"
    STORE = "store"


@dataclass(slots=True, eq=False)
class Job:
    """Some blobs, one way, between buffers and one tier.

    The buffers must stay as they are until the job is done, whatever becomes of its deadline.
    """

    kind: Kind
    tier: str
    keys: list[Key]
    buffers: list[memoryview]
    deadline: float = 0.0  # seconds of the mover's clock
    delete_first: list[Key] = field(default_factory=list)
    source: str | None = None  # the tier that a store reads; None: the device
    ok: list[bool] = field(default_factory=list)  # set when done
    broken: bool = False  # the tier raised: it is not only that a key was not there
    late: bool = False
    submitted: float = 0.0
    seconds: float = 0.0  # of work, without waiting in the queue

    @property
    def num_bytes(self) -> int:
        return sum(len(buffer) for buffer in self.buffers)


@dataclass(slots=True)
class Lane:
    """One tier's queue, what was measured of it, and whether it is trusted now."""

    tier: Tier
    jobs: queue.SimpleQueue[Job | None] = field(default_factory=queue.SimpleQueue)
    waiting: int = 0
    load_bandwidth: float = 0.0  # bytes a second, smoothed; 0: not measured yet
    store_bandwidth: float = 0.0
    bytes_loaded: int = 0
    bytes_stored: int = 0
    load_seconds: float = 0.0
    predicted_seconds: float = 0.0  # what was expected of the loads
    failures: int = 0  # in a row: jobs in which the tier raised
    total_failures: int = 0
    deadline_misses: int = 0
    dropped_stores: int = 0
    open_until: float = 0.0  # the breaker: no jobs before then
    late: int = 0  # jobs past their deadline that have not ended: no others meanwhile
    penalty: float = BREAKER_SECONDS


class Mover:
    """`threads` a tier; at most `max_queued` store jobs wait a tier, and more are refused."""

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
        self._max_queued = max_queued
        self._deadline = deadline
        self._asynchronous = asynchronous
        self._clock = clock
        self._pending: dict[Job, None] = {}
        self._done: deque[Job] = deque()
        self._wake = threading.Event()
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
        """Whether the tier's breaker is closed; it opens after failures and closes by itself.

        Nor is a tier used that may be hanging: each of its jobs would hold on to its buffers.
        """
        lane = self.lanes[tier]
        return lane.late == 0 and self._clock() >= lane.open_until

    def accepts_store(self, tier: str) -> bool:
        return self.usable(tier) and self.lanes[tier].waiting < self._max_queued

    def submit(self, job: Job) -> None:
        """Start a job. Stores must have been accepted by `accepts_store`."""
        lane = self.lanes[job.tier]
        job.submitted = self._clock()
        job.deadline = job.submitted + self._deadline
        self._pending[job] = None
        lane.waiting += 1
        if self._asynchronous:
            lane.jobs.put(job)
        else:
            self._carry_out(lane, job)

    def wait(self, seconds: float) -> None:
        """Until a job is done, at most so long."""
        if not self._done:
            self._wake.wait(seconds)
        self._wake.clear()

    def poll(self) -> tuple[list[Job], list[Job]]:
        """(jobs that are done, loads that have just passed their deadline and go on).

        A late job is still reported as done when it ends; until then its buffers are in use.
        """
        done: list[Job] = []
        while self._done:
            job = self._done.popleft()
            del self._pending[job]
            self._account(job)
            done.append(job)
        now = self._clock()
        late = [j for j in self._pending if j.kind is Kind.LOAD and not j.late and now > j.deadline]
        for job in late:
            job.late = True
            lane = self.lanes[job.tier]
            lane.late += 1
            lane.deadline_misses += 1
            self._fail(lane)
        return done, late

    def _account(self, job: Job) -> None:
        lane = self.lanes[job.tier]
        lane.waiting -= 1
        lane.late -= job.late
        good = sum(len(b) for b, ok in zip(job.buffers, job.ok, strict=True) if ok)
        if job.kind is Kind.LOAD:
            lane.bytes_loaded += good
            lane.load_seconds += job.seconds
        else:
            lane.bytes_stored += good
        if all(job.ok):
            if not job.late:
                lane.failures, lane.penalty = 0, BREAKER_SECONDS
            rate = good / max(job.seconds, 1e-9)
            name = "load_bandwidth" if job.kind is Kind.LOAD else "store_bandwidth"
            known = getattr(lane, name)
            setattr(lane, name, rate if known == 0 else known + SMOOTHING * (rate - known))
        elif job.broken and not job.late:
            self._fail(lane)

    def _fail(self, lane: Lane) -> None:
        """Failures in a row open the breaker, for longer each time."""
        lane.failures += 1
        lane.total_failures += 1
        if lane.failures >= BREAKER_FAILURES:
            lane.open_until = self._clock() + lane.penalty
            logger.warning("The %s tier fails; not used for %.0f s", lane.tier.name, lane.penalty)
            lane.penalty = min(lane.penalty * 2, BREAKER_MAX_SECONDS)
            lane.failures = 0

    def _work(self, lane: Lane) -> None:
        while (job := lane.jobs.get()) is not None:
            self._carry_out(lane, job)

    def _carry_out(self, lane: Lane, job: Job) -> None:
        start = self._clock()
        ok = [False] * len(job.keys)
        for key in job.delete_first:
            delete(lane.tier, key)
        for i, (key, buffer) in enumerate(zip(job.keys, job.buffers, strict=True)):
            ok[i] = _one(lane.tier, job, key, buffer)
        job.seconds = self._clock() - start
        job.ok = ok
        self._done.append(job)
        self._wake.set()

    def shutdown(self, timeout: float = 2.0) -> None:
        """End the threads; one that hangs in a tier is left behind (they are daemons)."""
        for lane in self.lanes.values():
            for _ in self._threads:
                lane.jobs.put(None)
        deadline = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        for lane in self.lanes.values():
            lane.tier.close()


def _one(tier: Tier, job: Job, key: Key, buffer: memoryview) -> bool:
    try:
        if job.kind is Kind.LOAD:
            return tier.read(key, buffer)
        tier.write(key, buffer)
    except OSError as error:
        if not job.broken:  # the first of a job tells for all
            logger.warning("The %s tier cannot %s a block: %s", tier.name, job.kind.value, error)
        job.broken = True
        return False
    except Exception:
        if not job.broken:
            logger.exception("A %s of the %s tier failed", job.kind.value, tier.name)
        job.broken = True
        return False
    return True


def delete(tier: Tier, key: Key) -> None:
    """Have the tier forget the key. If it cannot, that much of it is lost until a restart."""
    try:
        tier.delete(key)
    except OSError as error:
        logger.warning("The %s tier cannot delete a block: %s", tier.name, error)
    except Exception:
        logger.exception("A deletion in the %s tier failed", tier.name)
