"""One tier's side of the mover: the jobs that wait for it, what was measured of it, and whether it
is trusted now.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from vllm.core.clock import Clock
from vllm.kv.lineage import Key
from vllm.kv.tiers import Tier

BREAKER_FAILURES = 3
BREAKER_SECONDS, BREAKER_MAX_SECONDS = 1.0, 60.0
SMOOTHING = 0.2  # weight of the newest measurement
BELIEVED_SECONDS = 60.0  # else a tier that was slow for a while would never be read again


class Kind(Enum):
    LOAD = "load"
    STORE = "store"


@dataclass(slots=True, eq=False)
class Job:
    """Some blobs, one way, between buffers and one tier.

    The buffers must stay as they are until the job is done or revoked.
    """

    kind: Kind
    tier: str
    keys: list[Key]
    buffers: list[memoryview]
    delete_first: list[Key] = field(default_factory=list)
    source: str | None = None  # the tier that a store reads; None: the device
    submitted: float = 0.0  # seconds of the mover's clock
    begun: float | None = None
    late: bool = False
    gate: threading.Lock = field(default_factory=threading.Lock)  # held where buffers are touched
    revoked: bool = False  # the buffers are not touched any more; the thread may be at it for long
    ok: list[bool] = field(default_factory=list)  # set when done
    broken: bool = False  # the tier raised: it is not only that a key was not there
    withdrawn: bool = False  # nothing was tried
    ended: float = 0.0

    def add(self, key: Key, buffer: memoryview, delete_first: list[Key]) -> None:
        self.keys.append(key)
        self.buffers.append(buffer)
        self.delete_first += delete_first

    def revoke(self) -> None:
        """Take the buffers back, now; waits for one copy at most."""
        with self.gate:
            self.revoked = True

    @property
    def num_bytes(self) -> int:
        return sum(len(buffer) for buffer in self.buffers)


class Queue:
    """Jobs that have not begun: loads first, since somebody waits for them, else in their order."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._loads: deque[Job] = deque()
        self._stores: deque[Job] = deque()
        self._closed = False

    def put(self, job: Job) -> None:
        with self._changed:
            (self._loads if job.kind is Kind.LOAD else self._stores).append(job)
            self._changed.notify()

    def take(self, clock: Clock) -> Job | None:
        """The next job, which begins now; waits for one. None: closed, and nothing is left."""
        with self._changed:
            while not self:
                if self._closed:
                    return None
                self._changed.wait()
            job = (self._loads or self._stores)[0]
            self.begin(job, clock())
            return job

    def begin(self, job: Job, now: float) -> None:
        """This one begins now, whether it is its turn or not."""
        with self._changed:
            (self._loads if job.kind is Kind.LOAD else self._stores).remove(job)
            job.begun = now

    def withdraw(self, job: Job) -> bool:
        """Take a job out. False when it has begun."""
        with self._changed:
            if job.begun is not None:
                return False
            (self._loads if job.kind is Kind.LOAD else self._stores).remove(job)
            job.withdrawn = True
            return True

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._loads) + len(self._stores)


@dataclass(slots=True)
class Breaker:
    """Opens after failures in a row, for longer each time, and closes by itself."""

    failures: int = 0
    open_until: float = 0.0
    penalty: float = BREAKER_SECONDS

    def fail(self, now: float) -> bool:
        """Whether that opens it."""
        self.failures += 1
        if self.failures < BREAKER_FAILURES:
            return False
        self.failures = 0
        self.open_until = now + self.penalty
        self.penalty = min(self.penalty * 2, BREAKER_MAX_SECONDS)
        return True

    def succeed(self) -> None:
        self.failures, self.penalty = 0, BREAKER_SECONDS

    def closed(self, now: float) -> bool:
        return now >= self.open_until


@dataclass(slots=True)
class Rate:
    """Bytes a second, of the latest transfers; of those at the same time, together."""

    bytes: float = 0.0  # smoothed alike, so that their ratio is
    seconds: float = 0.0
    until: float = -math.inf  # up to then seconds are counted

    def add(self, count: int, begun: float, ended: float) -> float:
        """Returns the seconds that nothing else took as well."""
        seconds = max(0.0, ended - max(begun, self.until))
        self.until = max(self.until, ended)
        self.bytes += SMOOTHING * (count - self.bytes)
        self.seconds += SMOOTHING * (seconds - self.seconds)
        return seconds

    def known(self, now: float) -> float:
        """0: not measured, or not lately."""
        if self.bytes == 0 or now > self.until + BELIEVED_SECONDS:
            return 0.0
        return self.bytes / max(self.seconds, 1e-9)


@dataclass(slots=True)
class Lane:
    """A disk that is full still reads, so loads and stores have a breaker each."""

    tier: Tier
    jobs: Queue = field(default_factory=Queue)
    waiting: int = 0  # jobs that have not ended
    loading_bytes: int = 0  # of loads that have not ended
    loads: Breaker = field(default_factory=Breaker)
    stores: Breaker = field(default_factory=Breaker)
    late: int = 0  # jobs past their deadline that have begun and not ended: no others meanwhile
    load_rate: Rate = field(default_factory=Rate)
    bytes_loaded: int = 0
    bytes_stored: int = 0
    load_seconds: float = 0.0
    predicted_seconds: float = 0.0  # what was expected of the loads
    failures: int = 0
    deadline_misses: int = 0
    dropped_stores: int = 0  # blocks that left the device while the queue took no more

    def breaker(self, kind: Kind) -> Breaker:
        return self.loads if kind is Kind.LOAD else self.stores

    def measure(self, job: Job) -> None:
        """Learn from a job that has ended."""
        good = sum(len(b) for b, ok in zip(job.buffers, job.ok, strict=True) if ok)
        if job.kind is Kind.STORE:
            self.bytes_stored += good
            return
        self.bytes_loaded += good
        if all(job.ok) and job.begun is not None:
            self.load_seconds += self.load_rate.add(good, job.begun, job.ended)
