"""Any schedule gives the tokens that each request would get alone."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from .drive import BASES, Drive
from .machine import DriveMachine


class SchedulerMachine(DriveMachine):
    @initialize(data=st.data())
    def start(self, data):
        self.drive = Drive(
            **self.limits(data, data.draw(st.integers(4, 12), "blocks")),
            threshold=data.draw(st.sampled_from([0, 0, 1, 3]), "threshold"),
            caching=data.draw(st.sampled_from([True, True, True, False]), "caching"),
            queued_reqs=data.draw(st.sampled_from([None, None, 3]), "queue"),
        )

    def add_one(self, data):
        drive = self.drive
        most = drive.max_model_len - 1
        size = drive.kv.spec.block_size
        near = data.draw(st.integers(1, 1 + most // size // 2), "blocks") * size
        length = max(1, min(most, near + data.draw(st.integers(-1, 1), "more")))
        own = min(length, data.draw(st.sampled_from([0, 0, 1, 2, 4]), "own"))
        base = data.draw(st.sampled_from(BASES))
        prompt = base[: length - own] + [8 + len(drive.requests) % 3] * own
        max_tokens = data.draw(st.sampled_from([1, 5, 20, 40]), "max_tokens")
        drive.add(
            prompt,
            n=data.draw(st.sampled_from([1, 1, 2, 3]), "n"),
            priority=self.priority(data),
            salt=data.draw(st.sampled_from([None, None, None, "a"]), "salt"),
            arrival=float(data.draw(st.integers(0, 3), "arrival")),
            max_tokens=max_tokens,
            min_tokens=min(max_tokens, data.draw(st.integers(0, 2), "min_tokens")),
            stop_token_ids=data.draw(st.sampled_from([[], [], list(range(0, 50, 5))]), "stop"),
            eos=data.draw(st.sampled_from([(), (), (1, 11, 21)]), "eos"),
            ignore_eos=data.draw(st.booleans(), "ignore_eos"),
            prompt_logprobs=data.draw(st.sampled_from([None, None, None, 0]), "prompt_logprobs"),
            skip_reading_prefix_cache=data.draw(st.sampled_from([None, None, True]), "skip"),
        )

    @rule(data=st.data())
    def end(self, data):
        """As the front end does: outputs that have given something, and may be finished by now."""
        started = [key for key, told in self.drive.told.items() if told.tokens]
        if started:
            key = data.draw(st.sampled_from(started))
            known = self.drive.told[key].end is not None
            self.drive.scheduler.end([key]) if known else self.drive.end(key)
            self.drive.scheduler.check()

    @rule(held=st.booleans())
    def sleep(self, held):
        """Nothing is planned, and nothing is lost; `held`: KVs stay where they are."""
        self.drive.scheduler.paused = True
        if not held:
            self.drive.scheduler.requeue()
            assert not self.drive.kv._tables and self.drive.kv.reset()
        self.drive.scheduler.check()
        assert not self.drive.step().seqs
        assert not self.drive.scheduler.has_work
        self.drive.scheduler.paused = False

    @rule()
    def reset(self):
        held = any(
            self.drive.kv._pool.is_published(b)
            for t in self.drive.kv._tables.values()
            for b in t.blocks
        )
        assert self.drive.kv.reset() is not held
        self.drive.kv.check()


SchedulerMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=20, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
