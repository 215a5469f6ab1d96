"""What is copied down, and when."""

from __future__ import annotations

from .test_spill import SIZE, Bench


def run(bench: Bench, seq: int, blocks: int) -> None:
    bench.run(seq, SIZE * blocks)
    bench.kv.publish(seq, [seq] * SIZE * blocks, SIZE * blocks)


def writes(bench: Bench) -> int:
    return sum(call == "write" for call, _ in bench.tier.calls)


def test_a_full_device_copies_what_still_runs() -> None:
    """Its blocks may go in the step in which it ends, with no time left to copy them."""
    bench = Bench(blocks=4, host=8)
    kv = bench.kv
    run(bench, 1, 4)
    for _ in range(2):  # the look-ahead is two blocks a step
        kv.write_back()
        bench.settle()
    assert writes(bench) == 4 and kv.usage == 1
    kv.write_back()
    bench.settle()
    assert writes(bench) == 4, "once"
    kv.release(1)
    run(bench, 2, 4)
    assert kv.lookup([1] * SIZE * 4, None, SIZE * 4) == 16, "nothing was lost"
    kv.release(2)
    bench.settle()


def test_a_device_with_room_copies_nothing() -> None:
    bench = Bench(blocks=8, host=8)
    run(bench, 1, 4)
    bench.kv.write_back()
    bench.settle()
    assert writes(bench) == 0
    bench.kv.release(1)


def test_what_another_tier_is_copying_is_left_alone() -> None:
    bench = Bench(blocks=4, host=8)
    run(bench, 1, 4)
    keys = bench.kv.prompt_keys(1, SIZE * 4)
    bench.kv.pool.pin(keys[0])
    for _ in range(3):
        bench.kv.write_back()
        bench.settle()
    assert writes(bench) == 3
    bench.kv.pool.unpin(keys[0])
    bench.kv.release(1)


def test_what_the_tier_did_not_take_is_tried_again() -> None:
    bench = Bench(blocks=4, host=8)
    run(bench, 1, 4)
    bench.tier.writes.extend(["os"] * 2)
    for _ in range(3):
        bench.kv.write_back()
        bench.settle()
    assert bench.kv.lookup([1] * SIZE * 4, None, SIZE * 4) == 16
    bench.kv.release(1)
    run(bench, 2, 4)
    assert bench.kv.lookup([1] * SIZE * 4, None, SIZE * 4) == 16
    bench.kv.release(2)
