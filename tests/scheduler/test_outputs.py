"""A request's n outputs, which share their prompt's blocks, and the logprobs of that prompt."""

from __future__ import annotations

import pytest

from .drive import Drive, prompt
from .fake import told


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("length", [7, 8, 9, 16, 17])
def test_outputs_share_the_blocks_of_their_prompt(length, caching):
    """All but the last token's, which each computes for itself."""
    size, n = 4, 3
    drive = Drive(blocks=32, size=size, caching=caching)
    drive.add(prompt(length), n=n, max_tokens=3)
    drive.step()
    plan = drive.step()
    shared = (length - 1) // size
    assert plan.starts.tolist() == [length, shared * size, shared * size]
    tables = [drive.kv.blocks(seq) for seq in plan.seqs]
    assert all(table[:shared] == tables[0][:shared] for table in tables)
    blocks = [-(-(length + 1) // size), -(-length // size), -(-length // size)]
    held = drive.kv.num_blocks - drive.kv._pool.available
    assert held == shared + sum(count - shared for count in blocks)
    drive.run()
    drive.verify()


def test_forks_that_wait_give_their_blocks_up_when_nothing_else_can_run():
    """Each of the three needs all the blocks that there are."""
    drive = Drive(blocks=4, size=2, max_model_len=8)
    drive.add(prompt(5), n=3, max_tokens=3)
    drive.add(prompt(5, 20), n=3, max_tokens=3)
    drive.run()
    drive.verify()


def test_each_output_has_a_seed_of_its_own():
    drive = Drive(blocks=128, seqs=64)
    for _ in range(4):
        drive.add(prompt(5), n=2, seed=None, max_tokens=1)
    drive.add(prompt(5), n=4, seed=77_000, max_tokens=1)
    seeds = []
    while drive.scheduler.has_work:
        seeds += [(n.seq, n.sampling_seed) for n in drive.step().new]
    seeds = [seed for _, seed in sorted(seeds)]
    assert seeds[-4:] == [77_000, 77_001, 77_002, 77_003]
    assert len(set(seeds)) == 12, "two outputs that nobody asked to be alike would be"


def test_unseeded_requests_follow_the_engines_seed():
    def seeds(seed: int) -> list[int]:
        drive = Drive(seed=seed)
        for _ in range(3):
            drive.add(prompt(5), seed=None, max_tokens=1)
        return [n.sampling_seed for n in drive.step().new]

    assert seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2))


@pytest.mark.parametrize("skip", [None, True, False])
def test_prompt_logprobs_are_told_once_and_whole(skip):
    """Whatever is cached, in chunks, through preemptions, and once for all n outputs."""
    drive = Drive(blocks=13, size=2, budget=4, seqs=4)
    drive.add(prompt(8), max_tokens=1)
    drive.run()
    drive.add(prompt(3, 30), max_tokens=11)
    drive.step()
    for _ in range(2):
        drive.add(prompt(8), n=2, max_tokens=5, prompt_logprobs=0, skip_reading_prefix_cache=skip)
    halfway = False
    while drive.scheduler.has_work:
        drive.step()
        halfway |= any(
            s.preemptions and 0 < s.prompt_logprobs_sent < 7 for s in drive.scheduler.waiting
        )
    assert halfway, "none was preempted within its prompt"
    assert drive.prompt_logprobs["r2"] == [told(prompt(p)) for p in range(2, 9)]
    drive.verify()
