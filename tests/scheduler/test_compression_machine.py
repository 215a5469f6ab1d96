"""With compressions at any moment, any schedule gives the tokens that each request gets alone.

The worker checks every KV that is read, and every slot that is written: rules R1 to R4.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from vllm.config.compression import CompressionSettings

from .compressing import CompressingDrive, params
from .drive import BASES
from .machine import DriveMachine


class CompressionMachine(DriveMachine):
    most_steps = 5000

    @initialize(data=st.data())
    def start(self, data):
        limits = self.limits(data, data.draw(st.integers(5, 14), "blocks"))
        if limits["chunked"]:  # prompts that are longer than the memory, too
            limits["max_model_len"] *= data.draw(st.sampled_from([1, 1, 2, 4]), "times the memory")
        self.drive = CompressingDrive(
            **limits,
            heads=data.draw(st.sampled_from([1, 2, 3]), "heads"),
            settings=CompressionSettings(
                interval=data.draw(st.sampled_from([1, 1, 3, 100]), "interval"),
                max_kvs=data.draw(st.sampled_from([10**6, 10]), "KVs a step"),
                new_token_limit=data.draw(st.sampled_from([None, 5]), "new tokens"),
                share=data.draw(st.booleans(), "share"),
            ),
            choices=data.draw(st.integers(0, 3), "choices"),
            window=data.draw(st.sampled_from([1, 3]), "waiting window"),
        )

    def add_one(self, data):
        drive = self.drive
        length = data.draw(st.integers(1, min(50, drive.max_model_len - 1)), "length")
        own = min(length, data.draw(st.sampled_from([0, 0, 1, 2, 4]), "own"))
        prompt = data.draw(st.sampled_from(BASES))[: length - own]
        prompt = prompt + [8 + len(drive.requests) % 3] * own
        wish = None
        if data.draw(st.sampled_from([True, True, True, False]), "compresses"):
            prefix = data.draw(st.sampled_from([None, 4, 4, 9]), "shared prefix")
            wish = params(
                shared_prefix_tokens=prefix if prefix is None or prefix < length else None,
                max_cache_tokens=data.draw(st.sampled_from([1, 3, 6]), "cache"),
                compress_once=data.draw(st.booleans(), "once"),
                window=data.draw(st.sampled_from([0, 2, 5, None]), "window"),
                budget_rule=data.draw(st.sampled_from(["global", "uniform"]), "rule"),
            )
        drive.add(
            prompt,
            compression=wish,
            n=data.draw(st.sampled_from([1, 1, 2]), "n"),
            priority=self.priority(data),
            max_tokens=data.draw(st.sampled_from([1, 5, 20]), "max_tokens"),
            stop_token_ids=data.draw(st.sampled_from([[], [], list(range(0, 50, 5))]), "stop"),
            skip_reading_prefix_cache=data.draw(st.sampled_from([None, None, True]), "skip"),
        )

    @precondition(lambda self: self.drive.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data):
        scheduler = self.drive.scheduler
        scheduler._preempt(data.draw(st.sampled_from(scheduler.running)))
        scheduler.check()


CompressionMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=20, deadline=None
)
TestCompression = CompressionMachine.TestCase
