"""An engine asleep: nothing is planned, and memory is given back until it wakes.

| level | what is given back |
|---|---|
| 0 | nothing: requests keep what they hold and go on afterwards |
| 1 | the KV cache: what runs is queued again, the device's cached prefixes are forgotten |
| 2 | the weights too: they are read from the model's folder again |

Slower tiers keep what they have. On a CPU the weights of level 1 are already where other devices
would put them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from vllm.core.errors import VLLMValidationError
from vllm.scheduler.scheduler import Scheduler

LEVELS = (0, 1, 2)
MEMORY = ("weights", "kv_cache")
TAGS = (*MEMORY, "scheduling")
SETTLE = 10.0  # seconds that transfers between tiers get to end


class Memory(Protocol):
    """An executor's memory, by part: `weights` or `kv_cache`."""

    def give_back(self, part: str) -> None: ...

    def take_again(self, part: str) -> None: ...


class Sleep:
    """Which parts of an engine are asleep."""

    def __init__(self, scheduler: Scheduler, memory: Memory) -> None:
        self._scheduler, self._memory = scheduler, memory
        self._asleep: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._asleep)

    def begin(self, level: int) -> None:
        """Raises VLLMValidationError for another level, RuntimeError when transfers do not end.

        Both before anything is given back.
        """
        if level not in LEVELS or isinstance(level, bool):
            raise VLLMValidationError("level must be 0, 1 or 2", parameter="level", value=level)
        was_paused, self._scheduler.paused = self._scheduler.paused, True
        self._asleep.add("scheduling")
        if level == 0:
            return
        if not self._forgotten():
            self._scheduler.paused = was_paused
            if not was_paused:
                self._asleep.discard("scheduling")
            raise RuntimeError("transfers between tiers have not ended; the engine stays awake")
        self._asleep.update(MEMORY)
        self._memory.give_back("kv_cache")
        if level == 2:
            self._memory.give_back("weights")

    def end(self, tags: Sequence[str] | None) -> bool:
        """Wake these parts, or all. Whether nothing sleeps any more.

        Requests go on once all memory is there. Raises VLLMValidationError for an unknown tag.
        """
        for tag in tags or ():
            if tag not in TAGS:
                known = ", ".join(TAGS)
                raise VLLMValidationError(
                    f"tags must be of {known}", parameter="tags", value=str(tag)
                )
        wanted = set(TAGS if tags is None else tags)
        due = [part for part in MEMORY if part in wanted & self._asleep]
        for part in due:
            self._memory.take_again(part)
            self._asleep.discard(part)
        if self._asleep == {"scheduling"} and (due or "scheduling" in wanted):
            self._asleep.clear()
            self._scheduler.paused = False
        return not self._asleep

    def _forgotten(self) -> bool:
        """Whether no sequence and no transfer needs the device's blocks any more."""
        kv = self._scheduler.kv
        self._scheduler.requeue()
        deadline = time.monotonic() + SETTLE
        while not kv.reset(below=False):
            if time.monotonic() > deadline:
                return False
            kv.wait(0.01)
            kv.poll()
        return True
