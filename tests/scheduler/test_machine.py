"""Any schedule gives the tokens that each request would get alone."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from .drive import Drive

BASES = (list(range(50)), [6, 7] * 25)  # prompts begin like one of these


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(data=st.data())
    def start(self, data):
        size = data.draw(st.integers(1, 4), "block size")
        blocks = data.draw(st.integers(4, 12), "blocks")
        chunked = data.draw(st.sampled_from([True, True, False]), "chunked")
        seqs = data.draw(st.sampled_from([2, 3, 5, 1]), "max_num_seqs")
        self.size, self.total = size, blocks * size
        most = data.draw(st.sampled_from([1, 1, 2]), "sequences that fit at their longest")
        longest = max(2, self.total // most - data.draw(st.integers(0, 2), "less"))
        low = seqs if chunked else max(seqs, longest)
        self.drive = Drive(
            blocks=blocks,
            size=size,
            seqs=seqs,
            budget=data.draw(st.integers(low, low + 8), "budget"),
            chunked=chunked,
            threshold=data.draw(st.sampled_from([0, 0, 1, 3]), "threshold"),
            policy=data.draw(st.sampled_from(["fcfs", "priority"]), "policy"),
            max_model_len=longest,
            caching=data.draw(st.sampled_from([True, True, True, False]), "caching"),
            queued_reqs=data.draw(st.sampled_from([None, None, 3]), "queue"),
        )

    @rule(data=st.data(), count=st.integers(1, 3))
    def add(self, data, count):
        for _ in range(count):
            self.add_one(data)

    def add_one(self, data):
        drive = self.drive
        most = drive.max_model_len - 1
        near = data.draw(st.integers(1, 1 + most // self.size // 2), "blocks") * self.size
        length = max(1, min(most, near + data.draw(st.integers(-1, 1), "more")))
        own = min(length, data.draw(st.sampled_from([0, 0, 1, 2, 4]), "own"))
        base = data.draw(st.sampled_from(BASES))
        prompt = base[: length - own] + [8 + len(drive.requests) % 3] * own
        policy = drive.scheduler._config.policy
        max_tokens = data.draw(st.sampled_from([1, 5, 20, 40]), "max_tokens")
        drive.add(
            prompt,
            n=data.draw(st.sampled_from([1, 1, 2, 3]), "n"),
            priority=data.draw(st.integers(0, 2), "priority") if policy == "priority" else 0,
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

    @precondition(lambda self: self.drive.scheduler.has_work)
    @rule(count=st.sampled_from([1, 3, 8]))
    def step(self, count):
        for _ in range(count):
            if self.drive.scheduler.has_work:
                self.drive.step()

    @precondition(lambda self: self.drive.requests)
    @rule(data=st.data())
    def abort(self, data):
        last = sorted(self.drive.requests)[-4:]
        self.drive.abort(data.draw(st.sampled_from(last)), "unknown")
        self.drive.scheduler.check()

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

    def teardown(self):
        if hasattr(self, "drive"):
            self.drive.run()
            self.drive.verify()


SchedulerMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=20, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
