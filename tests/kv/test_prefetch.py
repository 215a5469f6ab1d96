"""Prefetching brings up what waits below, keeps it for whom it is meant, and is in nobody's way."""

from __future__ import annotations

from vllm.core.retention import CacheHints
from vllm.kv.lineage import root

from .test_spill import SIZE, Bench


def below(bench: Bench, seq: int, tokens: int) -> None:
    """Compute and publish a sequence, and push it down to the tier alone."""
    bench.run(seq, tokens)
    bench.kv.publish(seq, [seq] * tokens, tokens)
    bench.kv.release(seq)
    while bench.kv.tiers.tidy():
        bench.settle()
    bench.kv.pool.forget_cached()


def warm(blocks: int = 20, host: int = 20, tokens: int = 12) -> Bench:
    bench = Bench(blocks, host)
    below(bench, 1, tokens)
    bench.kv.enable_prefetching()
    assert len(bench.kv.index) == 0, "all of it is below"
    return bench


def test_it_comes_up_and_stays_until_its_request_runs() -> None:
    bench = warm()
    kv, prompt = bench.kv, [1] * 13
    kv.prefetch(7, prompt, None, 12)
    assert kv.probe(7, prompt, None, 12) == (0, 12)
    bench.settle()
    assert kv.probe(7, prompt, None, 12) == (12, 12)
    assert kv.usage > 0, "held, so that nothing pushes it out"
    kv.prefetch(7, prompt, None, 12)  # once is enough
    assert kv.admit(7, prompt) == 12 and not kv.waits(7)
    assert kv.sources(7) == {"device": 12}
    kv.release(7)
    bench.settle()
    assert kv.usage == 0


def test_a_request_that_comes_meanwhile_shares_the_load() -> None:
    bench = warm()
    bench.kv.prefetch(7, [1] * 13, None, 12)
    assert bench.kv.admit(7, [1] * 13) == 12 and bench.kv.waits(7)
    assert bench.settle() == ([7], [])
    reads = [key for call, key in bench.tier.calls if call == "read"]
    assert len(reads) == len(set(reads)) == 3


def test_it_leaves_room_and_gives_way() -> None:
    bench = warm(blocks=20, tokens=12)
    kv = bench.kv
    assert kv.admit(2, [2] * SIZE * 16) == 0  # four blocks are left, two of them the watermark
    kv.prefetch(7, [1] * 13, None, 12)
    bench.settle()
    assert kv.probe(7, [1] * 13, None, 12) == (8, 12)
    assert kv.pool.available == 2
    assert kv.admit(3, [3] * SIZE * 4) == 0, "what was only prefetched is given up"
    bench.settle()


def test_the_window_moves_on() -> None:
    bench = warm()
    bench.kv.prefetch(7, [1] * 13, None, 12)
    bench.settle()
    bench.kv.keep_prefetched({7, 8})
    assert bench.kv.usage > 0
    bench.kv.keep_prefetched({8})
    assert bench.kv.usage == 0
    assert bench.kv.probe(7, [1] * 13, None, 12) == (12, 12), "it stays cached"


def test_a_load_that_fails_leaves_nothing() -> None:
    bench = warm()
    bench.tier.reads.extend(["os"] * 3)
    bench.kv.prefetch(7, [1] * 13, None, 12)
    bench.settle()
    bench.kv.release(7)
    bench.settle()
    assert bench.kv.usage == 0
    assert bench.kv.pool.free == bench.kv.num_blocks


def test_session_verbs() -> None:
    """pin keeps what is oldest, demote lets go what is newest, prefetch brings up, release ends."""
    bench = Bench(blocks=4, host=8)
    kv = bench.kv

    def turn(seq: int, name: str) -> None:
        assert kv.admit(seq, [seq] * 8, hints=CacheHints(session=name)) == 0
        kv.publish(seq, [seq] * 8, 8)
        kv.release(seq)
        bench.settle()

    def on_device(seq: int) -> int:
        return kv.probe(100 + seq, [seq] * 9, None, 8)[0]

    turn(1, "a"), turn(2, "b")
    assert kv.session("a", "pin") == 2 and kv.session("nobody", "pin") == 0
    turn(3, "c")
    assert (on_device(1), on_device(2), on_device(3)) == (8, 0, 8)
    kv.session("a", "release"), kv.session("c", "demote")
    turn(4, "d")
    assert (on_device(1), on_device(3), on_device(4)) == (8, 0, 8)
    while kv.tiers.tidy():
        bench.settle()
    turn(5, "e"), turn(6, "f")
    assert on_device(1) == 0
    assert kv.session("a", "prefetch") == 2
    bench.settle()
    assert on_device(1) == 8
    bench.kv.check()


def test_a_session_is_its_tenants() -> None:
    kv = Bench(blocks=4, host=0).kv
    kv.admit(1, [1] * 8, salt="mine", hints=CacheHints(session="s"))
    kv.publish(1, [1] * 8, 8)
    kv.release(1)
    assert kv.session("s", "pin") == kv.session("s", "pin", salt="yours") == 0
    assert kv.session("s", "pin", salt="mine") == 2


def test_a_pin_expires() -> None:
    bench = Bench(blocks=4, host=0)
    kv, keys = bench.kv, {}
    for seq in (1, 2):
        kv.admit(seq, [seq] * 8, hints=CacheHints(session=str(seq)))
        kv.publish(seq, [seq] * 8, 8)
        kv.release(seq)
        keys[seq] = kv.sessions.keys(root(bytes(32)), str(seq))
    kv.session("1", "pin", ttl=5.0)
    kv.uses.now = 4.0
    assert [kv.pool.next_victims(4)[i][0] for i in (0, 1)] == list(reversed(keys[2]))
    kv.uses.now = 6.0
    assert kv.uses.last(keys[1][0]).expires < kv.uses.now
    kv.admit(3, [3] * 8)
    assert kv.lookup([2] * 9, None, 8) == 0, "it goes before: the pin's end counts as a use"
    kv.admit(4, [4] * 4)
    assert kv.lookup([1] * 9, None, 8) == 4, "the pin is over"
