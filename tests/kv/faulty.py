"""A tier that fails when told to, and a mover whose jobs go one small step at a time."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable

from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover


class FaultyTier:
    """Slots like the host tier's, copied in two halves, so that torn and reused ones show.

    `reads`, `writes` and `deletes` hold what the next such calls do: "ok", "miss" (reads only),
    "os" or "crash" (an OSError or another exception, half way through); empty: ok. `pause` is
    called wherever a thread could lose the processor.

    Like files, blobs have a header, and what does not match it is not given out: `harm` flips a
    bit, truncates, or swaps two of them.
    """

    in_memory = False

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name, self.damaged = name, 0
        self.free = list(range(num_blocks))
        self.content: list[bytearray] = [bytearray() for _ in range(num_blocks)]
        self.header: list[tuple[Key, int, int] | None] = [None] * num_blocks
        self.slot: dict[Key, int] = {}
        self.reads: deque[str] = deque()
        self.writes: deque[str] = deque()
        self.deletes: deque[str] = deque()
        self.calls: list[tuple[str, Key]] = []
        self.pause: Callable[[], None] = lambda: None

    def _fault(self, plan: deque[str]) -> str:
        return plan.popleft() if plan else "ok"

    def contains(self, keys: list[Key]) -> list[bool]:
        return [key in self.slot for key in keys]

    def read(self, key: Key, buffer: memoryview) -> bool:
        self.calls.append(("read", key))
        fault = self._fault(self.reads)
        slot = self.slot.get(key)
        self.pause()
        if slot is None or fault == "miss":
            return False
        half = len(buffer) // 2
        whole = self.content[slot].ljust(len(buffer), b"?")  # a truncated one leaves rubbish
        buffer[:half] = whole[:half]
        self.pause()
        _raise(fault)
        buffer[half:] = whole[half:]
        if self.header[slot] == (key, len(self.content[slot]), zlib.crc32(buffer)):
            return True
        self.damaged += 1
        if self.slot.pop(key, None) is not None:
            self.free.append(slot)
        return False

    def harm(self, how: str, key: Key, other: Key) -> None:
        content = self.content[self.slot[key]]
        if how == "flip":
            content[len(content) // 2] ^= 1
        elif how == "truncate":
            del content[len(content) // 2 :]
        elif how == "swap":
            self.slot[key], self.slot[other] = self.slot[other], self.slot[key]

    def is_sound(self, key: Key) -> bool:
        slot = self.slot[key]
        content = self.content[slot]
        return self.header[slot] == (key, len(content), zlib.crc32(content))

    def write(self, key: Key, buffer: memoryview) -> None:
        self.calls.append(("write", key))
        fault = self._fault(self.writes)
        self.pause()
        if key in self.slot:
            return
        _raise(fault)
        if not self.free:
            raise OSError("the tier is full")
        slot = self.free.pop()
        half = len(buffer) // 2
        self.content[slot][:] = bytes(buffer[:half]) + bytes(len(buffer) - half)
        self.pause()
        self.content[slot][half:] = buffer[half:]
        self.header[slot] = key, len(buffer), zlib.crc32(self.content[slot])
        self.slot[key] = slot

    def delete(self, key: Key) -> None:
        self.calls.append(("delete", key))
        fault = self._fault(self.deletes)
        self.pause()
        _raise(fault)
        slot = self.slot.pop(key, None)
        if slot is not None:
            self.free.append(slot)

    def view(self, key: Key) -> memoryview | None:
        slot = self.slot.get(key)
        return None if slot is None else memoryview(self.content[slot])

    def close(self) -> None:
        pass


def _raise(fault: str) -> None:
    if fault == "os":
        raise OSError(5, "made up")
    if fault == "crash":
        raise RuntimeError("made up")


class Step:
    """A job in a thread that runs only while `advance` waits for it, from pause to pause."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.ended = False
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._work()
        finally:
            self.ended = True
            self._stopped.release()

    def pause(self) -> None:
        self._stopped.release()
        self._go.acquire()

    def advance(self) -> None:
        assert not self.ended
        self._go.release()
        assert self._stopped.acquire(timeout=10), "a job hangs"
        if self.ended:
            self._thread.join(10)

    @property
    def mine(self) -> bool:
        return threading.current_thread() is self._thread


class SteppedMover(Mover):
    """Asynchronous, without threads of its own: jobs start and go on when `advance` says so."""

    def __init__(self, tiers: list[FaultyTier], *, lanes: int = 2, **options) -> None:
        super().__init__(tiers, threads=0, **options)
        self.faulty = {tier.name: tier for tier in tiers}
        self.started: dict[str, list[Step]] = {tier.name: [] for tier in tiers}
        self._most = lanes
        for tier in tiers:
            tier.pause = self._pause

    def _pause(self) -> None:
        for steps in self.started.values():
            for step in steps:
                if step.mine:
                    step.pause()

    def begin(self) -> None:
        """Hand queued jobs to free threads, in their order, as the real ones take them."""
        for name, lane in self.lanes.items():
            while len(self.started[name]) < self._most and lane.jobs:
                job = lane.jobs.take(self._clock)
                assert job is not None
                self.started[name].append(Step(lambda lane=lane, job=job: self._run_job(lane, job)))

    def _run_job(self, lane, job) -> None:
        self._carry_out(lane, job)

    def runnable(self) -> list[tuple[str, int]]:
        self.begin()
        return [(name, i) for name, steps in self.started.items() for i in range(len(steps))]

    def advance(self, name: str, i: int) -> None:
        step = self.started[name][i]
        step.advance()
        if step.ended:
            self.started[name].remove(step)

    def finish(self) -> None:
        """Everything that is queued, to its end."""
        while runnable := self.runnable():
            self.advance(*runnable[0])

    def stores_from_device(self) -> list[Job]:
        return [j for j in self._pending if j.kind is Kind.STORE and j.source is None]


class HeldClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
