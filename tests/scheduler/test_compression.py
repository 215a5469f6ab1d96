"""When sequences are compressed, and what that makes room for."""

from __future__ import annotations

from vllm.config.compression import CompressionSettings

from .compressing import CompressingDrive, params


def run(settings: CompressionSettings | None = None, *, wish=None, count=1, **options):
    """Requests of 20 tokens that generate 30 more. Returns the drive, and its (seq, tokens)."""
    limits = {"blocks": 99, "size": 2, "budget": 99} | options
    drive = CompressingDrive(settings=settings, **limits)
    for i in range(count):
        drive.add([i] * 20, max_tokens=30, compression=wish or params(max_cache_tokens=8))
    points = []
    while drive.scheduler.has_work:
        points += [(o.seq, o.tokens) for o in drive.step().compress]
    drive.verify()
    return drive, points


def test_after_the_prompt_and_whenever_a_block_a_head_can_be_had():
    _, points = run()
    assert [tokens for _, tokens in points] == list(range(20, 49, 2))


def test_once():
    _, points = run(wish=params(max_cache_tokens=8, compress_once=True))
    assert points == [(1, 20)]


def test_not_for_what_keeps_everything():
    for wish in (params(max_cache_tokens=60), params(target_compression_rate=1.0)):
        assert run(wish=wish)[1] == []


def test_the_interval_is_counted_in_tokens():
    _, points = run(CompressionSettings(interval=9))
    assert [tokens for _, tokens in points] == [20, 29, 38, 47]


def test_the_limit_on_new_tokens_is_the_batchs():
    """Four sequences make 4 tokens a step: after 3 steps they have made 12."""
    _, points = run(CompressionSettings(interval=1000, new_token_limit=12), count=4)
    later = [tokens for _, tokens in points if tokens > 20]
    assert later
    assert all(later.count(tokens) == 4 for tokens in later)
    assert set(later) == set(range(min(later), 49, 3))


def test_no_more_kvs_than_allowed_in_one_step():
    """Whose turn has not come waits for it, and is compressed as it would have been."""
    drive = CompressingDrive(
        settings=CompressionSettings(max_kvs=50), heads=2, blocks=64, size=2, budget=64
    )
    for i in range(3):
        drive.add([i] * 20, max_tokens=10, compression=params(max_cache_tokens=8))
    plans = [drive.step() for _ in range(3)]
    assert [[o.tokens for o in plan.compress] for plan in plans] == [[20], [20], [20]]
    assert [sorted(plan.seqs) for plan in plans] == [[1, 2, 3], [1], [1, 2]]
    drive.run()
    drive.verify()


def test_before_anybody_is_preempted():
    """36 blocks for three that grow to 25 each: there is room as they are compressed."""
    drive, points = run(CompressionSettings(interval=1000), count=3, blocks=36)
    assert drive.totals.preemptions == 0
    assert [tokens for _, tokens in points if tokens > 20]


def test_more_run_at_once():
    """Those that run count at their compressed size when the next is admitted."""

    def most(wish) -> int:
        drive = CompressingDrive(blocks=40, size=2, budget=64, seqs=8)
        for i in range(8):
            drive.add([i] * 20, max_tokens=20, compression=wish)
        running = 0
        while drive.scheduler.has_work:
            drive.step()
            running = max(running, len(drive.scheduler.running))
        drive.verify()
        return running

    assert most(None) <= 3
    assert most(params(max_cache_tokens=4)) >= 6


def test_a_pause_gives_no_order_twice():
    drive = CompressingDrive()
    drive.add([1] * 20, max_tokens=10, compression=params(max_cache_tokens=4))
    assert drive.step().compress
    drive.scheduler.paused = True
    assert not drive.scheduler.schedule(5.0).compress
    drive.scheduler.paused = False
    drive.run()
    drive.verify()
