"""The shelf: order of eviction, pins, and keys that a tier is still deleting."""

from __future__ import annotations

from vllm.kv.evict.lru import LRU
from vllm.kv.lineage import Key
from vllm.kv.retention import Uses
from vllm.kv.shelf import Shelf


def key(name: str) -> Key:
    return Key(name.encode() * 32)


def keys(names: str) -> list[Key]:
    return [key(n) for n in names]


def full(names: str) -> Shelf:
    """All of them sole, in this order."""
    shelf = Shelf(len(names), LRU(), Uses(100, 16))
    assert shelf.adopt(keys(names)) == []
    return shelf


def test_adopts_the_newest():
    shelf = Shelf(2, LRU(), Uses(100, 16))
    assert shelf.adopt(keys("abcd")) == keys("ab")
    assert [k in shelf for k in keys("abcd")] == [False, False, True, True]


def test_spare_goes_before_sole_and_bad_before_both():
    shelf = full("abcd")
    shelf.device_has(key("c"))
    shelf.spoil(key("d"))
    assert key("d") not in shelf
    victims = []
    for new in "wxyz":
        victims += shelf.reserve(key(new))
        shelf.stored(key(new), on_device=False)
        shelf.check()
    assert victims == keys("dcab")


def test_a_read_does_not_change_the_order():
    """Else what was just copied down would outlive what was not."""
    shelf = full("abc")
    for k in keys("ab"):
        shelf.pin(k)
    assert shelf.reserve(key("x")) == keys("c")
    shelf.failed(key("x"))
    for k in keys("ab"):
        shelf.unpin(k)
    shelf.check()
    assert shelf.next_sole(9) == keys("ab")
    assert shelf.reserve(key("x")) == []
    assert shelf.reserve(key("y")) == keys("a")


def test_no_room_while_all_is_pinned():
    shelf = full("a")
    shelf.pin(key("a"))
    assert shelf.reserve(key("x")) is None
    shelf.check()


def test_a_key_is_not_written_before_it_is_deleted():
    shelf = full("a")
    assert shelf.reserve(key("x")) == keys("a")
    assert key("a") not in shelf
    assert shelf.knows(key("a"))
    assert shelf.reserve(key("a")) is None
    shelf.deleted(keys("a"))
    shelf.stored(key("x"), on_device=True)
    assert not shelf.knows(key("a"))
    assert shelf.reserve(key("a")) == keys("x")


def test_what_is_bad_is_written_anew():
    shelf = full("ab")
    shelf.spoil(key("b"))
    assert not shelf.knows(key("b"))
    assert shelf.reserve(key("b")) == keys("b")
    shelf.deleted(keys("b"))
    shelf.stored(key("b"), on_device=False)
    assert key("b") in shelf
    assert len(shelf) == 2


def test_what_the_device_lets_go_was_just_used():
    shelf = full("ab")
    shelf.device_has(key("a"))
    shelf.device_lost(key("a"))
    assert shelf.next_sole(2) == keys("ba")
    assert shelf.clear() == keys("ba")
    assert len(shelf) == 0


def test_a_shelf_without_room():
    shelf = Shelf(0, LRU(), Uses(100, 16))
    assert shelf.adopt(keys("a")) == keys("a")
    assert shelf.reserve(key("a")) is None


def test_what_was_not_deleted_after_all():
    shelf = full("abcd")
    shelf.device_has(key("b"))
    shelf.spoil(key("d"))
    assert [shelf.reserve(key(new)) for new in "dxy"] == [keys("d"), keys("b"), keys("a")]
    for new in "dxy":
        shelf.failed(key(new))
    shelf.keep(key("d"), on_device=False, bad=True)
    shelf.keep(key("b"), on_device=True, bad=False)
    shelf.keep(key("a"), on_device=False, bad=False)
    shelf.check()
    assert [key(k) in shelf for k in "abcd"] == [True, True, True, False]
    assert [shelf.reserve(key(new)) for new in "xyz"] == [keys("d"), keys("b"), keys("c")]
