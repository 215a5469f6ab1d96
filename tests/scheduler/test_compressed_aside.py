"""Compressed sequences over tiers that fail, hang and are late, with preemption by swapping."""

from __future__ import annotations

import random

import pytest

from vllm.config.compression import CompressionSettings

from .compressing import CompressingDrive, params
from .drive import some_prompt
from .tiered import TieredDrive


class AsideDrive(TieredDrive, CompressingDrive):
    pass


def live(seed: int) -> AsideDrive:
    rng = random.Random(seed)
    size, blocks, heads = rng.randint(1, 4), rng.randint(6, 14), rng.randint(1, 3)
    longest = max(2, size * blocks // rng.choice([1, 2, 2]) - rng.randint(0, 2))
    seqs = rng.choice([1, 2, 3, 5])
    drive = AsideDrive(
        rng,
        rng.randint(2, 30),
        0,
        rng.random() < 0.8,
        heads=heads,
        settings=CompressionSettings(interval=rng.choice([1, 1, 4]), share=seed % 2 == 1),
        choices=seed,
        blocks=blocks,
        size=size,
        seqs=seqs,
        budget=seqs + rng.randint(0, 8),
        max_model_len=longest,
        swap=rng.random() < 0.8,
    )
    for _ in range(40):
        op = rng.random()
        if op < 0.4:
            tokens = some_prompt(rng, longest - 1)
            prefix = rng.choice([4, 9]) if seed % 2 else longest
            wish = params(
                shared_prefix_tokens=prefix if prefix < len(tokens) else None,
                max_cache_tokens=rng.choice([1, 3, 6]),
                compress_once=rng.random() < 0.3,
                window=rng.choice([0, 2, None]),
            )
            drive.add(
                tokens,
                compression=rng.choice([wish, wish, None]),
                n=rng.choice([1, 1, 2]),
                max_tokens=rng.choice([3, 10, 20]),
            )
        elif op < 0.5 and drive.requests:
            drive.abort(rng.choice(sorted(drive.requests)[-4:]))
        elif op < 0.7 and drive.scheduler.running:
            drive.scheduler._preempt(rng.choice(drive.scheduler.running))
        elif op < 0.75:
            drive.misbehave()
        elif op < 0.8:
            drive.clock.now += rng.choice([0.5, 3.0, 70.0])
        drive.scheduler.check()
        for _ in range(rng.choice([0, 1, 4])):
            if drive.scheduler.has_work:
                drive.step()
    drive.finish()
    assert not drive.fake.parked
    assert not drive.kv._heads._aside
    return drive


@pytest.mark.parametrize("part", range(5))
def test_random_lives(part):
    drives = [live(seed) for seed in range(20 * part, 20 * part + 20)]
    assert sum(d.fake.resumed for d in drives) > 5
    assert sum(d.fake.hits for d in drives) > 2
