"""What the state machines over a `Drive` share: requests come, steps go by, some are aborted."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from .drive import Drive


class DriveMachine(RuleBasedStateMachine):
    """A machine sets `drive` at its start, and says what one request is like."""

    drive: Drive

    def limits(self, data, blocks: int) -> dict:
        """Options of a drive of so many blocks: small ones, so that room is always short."""
        size = data.draw(st.integers(1, 4), "block size")
        chunked = data.draw(st.sampled_from([True, True, False]), "chunked")
        seqs = data.draw(st.sampled_from([2, 3, 5, 1]), "max_num_seqs")
        most = data.draw(st.sampled_from([1, 1, 2]), "sequences that fit at their longest")
        longest = max(2, blocks * size // most - data.draw(st.integers(0, 2), "less"))
        low = seqs if chunked else max(seqs, longest)
        return {
            "blocks": blocks,
            "size": size,
            "seqs": seqs,
            "budget": data.draw(st.integers(low, low + 8), "budget"),
            "chunked": chunked,
            "policy": data.draw(st.sampled_from(["fcfs", "priority"]), "policy"),
            "max_model_len": longest,
        }

    def add_one(self, data) -> None:
        raise NotImplementedError

    def priority(self, data) -> int:
        ranked = self.drive.scheduler._config.policy == "priority"
        return data.draw(st.integers(0, 2), "priority") if ranked else 0

    @rule(data=st.data(), count=st.integers(1, 3))
    def add(self, data, count):
        for _ in range(count):
            self.add_one(data)

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

    most_steps: int | None = None  # of the end; None: what `Drive.run` allows

    def teardown(self):
        if hasattr(self, "drive"):
            self.drive.run(self.most_steps)
            self.drive.verify()
