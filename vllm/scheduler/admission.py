"""Who that waits can start, and with what room."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vllm.config import SchedulerConfig
from vllm.kv.manager import KVManager
from vllm.scheduler import window
from vllm.scheduler.compression import Compression
from vllm.scheduler.sequence import Sequence


class Admission:
    """Asks the cache and gives a sequence its blocks; the queues are the scheduler's."""

    def __init__(self, config: SchedulerConfig, kv: KVManager, compression: Compression) -> None:
        self._config, self._kv, self._compression = config, kv, compression

    def readable(self, sequence: Sequence) -> int:
        """How many of its tokens the sequence may take from the cache."""
        if sequence.request.params.skip_reading_prefix_cache:
            return 0
        return min(len(sequence.dense) - 1, self._compression.readable(sequence))

    def seek(self, sequence: Sequence) -> None:
        """It has come: let the shared store say what it has of it."""
        salt = sequence.request.cache_salt
        self._kv.seek(sequence.number, sequence.tokens, salt, self.readable(sequence))

    def candidates(
        self, waiting: list[Sequence], others: Callable[[], list[Sequence]]
    ) -> Iterator[Sequence]:
        """Those that can start as far as the cache is concerned, in the order to try them.

        others: those that have started.
        """
        size = self._config.window_size
        for sequence in window.candidates(waiting, size, self._hits):
            deferrable = size > 1 and sequence.overtaken < size - 1
            if deferrable and self._is_deferred(sequence, others()):
                continue
            if self._kv.seeks(sequence.number):
                continue  # for a moment: those behind it that are looked at may go first
            yield sequence

    def _hits(self, sequence: Sequence) -> tuple[int, int]:
        salt = sequence.request.cache_salt
        device, everywhere = self._kv.probe(
            sequence.number, sequence.tokens, salt, self.readable(sequence)
        )
        shared = self._compression.found(sequence)
        return max(device, shared), max(everywhere, shared)

    def _is_deferred(self, sequence: Sequence, others: list[Sequence]) -> bool:
        """Whether another sequence is computing what this one would compute first."""
        if self._compression.found(sequence):
            return False
        if self._compression.deferred(sequence, others):
            return True
        salt = sequence.request.cache_salt
        return bool(self.readable(sequence)) and self._kv.deferred(
            sequence.number, sequence.tokens, salt
        )

    def admit(
        self, sequence: Sequence, budget: int, running: list[Sequence], started: int, *, alone: bool
    ) -> int | None:
        """Give it blocks for all of its tokens; how many need not be computed. None: no room.

        running: with rows, of all that have `started`. alone: nobody else waits.
        """
        headroom = self._headroom(sequence, running, started)
        saved = self._admit_shared(sequence, budget, headroom)
        if saved is not None:
            return saved
        if not self._config.enable_chunked_prefill and len(sequence.dense) > budget:
            return None
        behind = self._compression.blocks_behind(sequence) if started else 0
        return self._kv.admit(
            sequence.number,
            sequence.dense,
            salt=sequence.request.cache_salt,
            limit=self.readable(sequence),
            headroom=headroom + behind,
            hints=sequence.request.hints,
            may_meet=alone and self._may_meet(sequence, running),
        )

    def _admit_shared(self, sequence: Sequence, budget: int, headroom: int) -> int | None:
        """Let it begin with a compressed prefix that others made: the tokens that this saves."""
        if not self._compression.found(sequence) or sequence.shared is None:
            return None
        (first, _), *later = sequence.points
        end = later[0][0] if later else sequence.length
        if not self._config.enable_chunked_prefill and end - first > budget:
            return None
        return self._kv.admit_shared(sequence.number, sequence.shared, end, headroom)

    def _may_meet(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Whether computing in parts, where it might load, takes nothing from anybody's prompt."""
        return (
            self._config.enable_chunked_prefill
            and not sequence.points
            and all(other.remaining == 1 for other in running)
        )

    def _headroom(self, sequence: Sequence, running: list[Sequence], started: int) -> int:
        """Blocks that admitting the sequence must leave: each that runs may need one for its next
        token, and one of them at a time enough for its compressed form."""
        if not started:
            return 0
        if not self._compression.enabled:
            return started
        return started + self._compression.headroom([sequence, *running])

    def prefetch(self, waiting: list[Sequence]) -> None:
        """Bring up what the first of these will need."""
        ahead = waiting[: self._config.prefetch]
        self._kv.keep_prefetched({s.number for s in ahead})
        for sequence in ahead:
            salt = sequence.request.cache_salt
            self._kv.prefetch(sequence.number, sequence.tokens, salt, self.readable(sequence))
