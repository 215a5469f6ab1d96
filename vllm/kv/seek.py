"""Asking a shared store what it has of a sequence that waits.

What others write cannot be known, only asked for, and the answer may take as long as a network
likes. So the keys of each sequence are asked for once, when it comes, by a thread of its own; the
sequence is not admitted before the answer is there, or `patience` seconds are over. A store that
leaves a question open for longer is asked nothing until it has answered, and one that fails is left
alone for a while, like a tier whose loads fail.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm.core.clock import Clock, monotonic
from vllm.kv.lane import Breaker
from vllm.kv.lineage import Key
from vllm.kv.tiers import Tier

logger = logging.getLogger(__name__)

PATIENCE = 0.5
BATCH = 64  # keys that are asked for at once; the next ones only if all of these are there
MAX_QUESTIONS = 256  # that wait; a sequence that comes to a full queue does without


@dataclass(slots=True, eq=False)
class Question:
    seq: int
    keys: Sequence[Key]
    asked: float
    found: list[Key] = field(default_factory=list)
    failed: bool = False


class Seeker:
    """Belongs to the engine's loop; only its thread calls the tier's `contains`."""

    def __init__(
        self,
        tier: Tier,
        *,
        asynchronous: bool = True,
        patience: float = PATIENCE,
        clock: Clock = monotonic,
    ) -> None:
        self._tier, self._patience, self._clock = tier, patience, clock
        self._open: dict[int, Question] = {}  # by sequence
        self._unanswered: dict[Question, None] = {}  # those of sequences that are gone, too
        self._answered: deque[Question] = deque()
        self._breaker = Breaker()
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._asynchronous = asynchronous
        if asynchronous:
            name = f"kv-{tier.name}-seek"
            threading.Thread(target=self._work, daemon=True, name=name).start()

    def ask(self, seq: int, keys: Sequence[Key]) -> None:
        """Find out which leading run of these keys is there, if the store can be asked now."""
        now = self._clock()
        if not keys or not self._breaker.closed(now) or len(self._unanswered) >= MAX_QUESTIONS:
            return
        if any(now - question.asked > self._patience for question in self._unanswered):
            return
        question = self._open[seq] = Question(seq, keys, now)
        self._unanswered[question] = None
        if self._asynchronous:
            self._questions.put(question)
        else:
            self._answer(question)

    def asking(self, seq: int) -> bool:
        """Whether the sequence should wait for its answer."""
        question = self._open.get(seq)
        return question is not None and self._clock() - question.asked <= self._patience

    def forget(self, seq: int) -> None:
        self._open.pop(seq, None)

    def poll(self) -> list[Key]:
        """Keys that were found since the last call."""
        found: list[Key] = []
        while self._answered:
            question = self._answered.popleft()
            del self._unanswered[question]
            if self._open.get(question.seq) is question:
                del self._open[question.seq]
            found += question.found
            if not question.failed:
                self._breaker.succeed()
            elif self._breaker.fail(self._clock()):
                logger.warning("The %s tier cannot be asked; left alone", self._tier.name)
        return found

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            self._answer(question)

    def _answer(self, question: Question) -> None:
        try:
            for at in range(0, len(question.keys), BATCH):
                keys = list(question.keys[at : at + BATCH])
                there = self._tier.contains(keys)
                run = there.index(False) if False in there else len(there)
                question.found += keys[:run]
                if run < len(keys):
                    break
        except OSError as error:
            logger.warning("The %s tier cannot be asked: %s", self._tier.name, error)
            question.failed = True
        except Exception:
            logger.exception("A question to the %s tier failed", self._tier.name)
            question.failed = True
        self._answered.append(question)

    def close(self) -> None:
        """End the thread, when the store has answered."""
        self._questions.put(None)

    def check(self) -> None:
        assert all(self._open[seq].seq == seq for seq in self._open)
        assert set(self._open.values()) <= self._unanswered.keys()
