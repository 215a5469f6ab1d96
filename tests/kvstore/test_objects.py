"""Chunks as objects and as values of Redis: the same answers as files, or none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vllm.kvstore import KVCache, KVStoreError, ObjectCacheConfig
from vllm.kvstore.values import open_values

from . import stores
from .test_files_api import LAYERS, NBYTES, as_list, tensors


@pytest.fixture(params=["memory", "s3", "redis"])
def url(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "memory":
        open_values("memory://kv").clear("")
        yield "memory://kv"
        return
    with stores.s3(monkeypatch) if request.param == "s3" else stores.redis() as made:
        yield made


def cache(url: str, chunk: int = 4, **more: Any) -> KVCache:
    config = ObjectCacheConfig(url, chunk_size=chunk)
    return KVCache(config, NBYTES, **({"layer": LAYERS} | more))


def spoil(url: str, change: Any) -> int:
    """Change every value behind the cache's back; how many there are."""
    values: Any = open_values(url)
    if hasattr(values, "_redis"):
        names = [n.decode().removeprefix(values.PREFIX) for n in values._redis.scan_iter("*")]
    else:
        root = values._root
        files = values._fs.find(root)
        names = [f"{f.split('/')[-3]}/{f.split('/')[-1]}" for f in files]
    for i, name in enumerate(names):
        value = values.get(name)
        assert value is not None
        values.put(name, change(i, value))
    return len(names)


def test_stored_found_forgotten(url: str) -> None:
    tokens = list(range(10))
    given, found = tensors(tokens), np.zeros((10, LAYERS, 2, 4), dtype=np.float32)
    with cache(url) as store:
        assert store.query(tokens, found) == 0
        assert store.update(tokens, given) == 8
        assert store.update(None, tokens, as_list(given)) == 8
        assert store.query(tokens, as_list(found)) == 8
    assert np.array_equal(found[:8], given[:8]) and not found[8:].any()
    with cache(url) as again:
        assert again.query([*tokens[:6], 99, 98], found[:8]) == 4
        assert again.query(tokens[:4], tokens[4:8], found[4:8]) == 4
        assert again.update([7] * 4, tokens[:4], given[:4]) == 0  # its prefix is not there
        again.clear()
        assert again.query(tokens, found) == 0


@pytest.mark.parametrize("change", [{"layer": 1}, {"namespace": "b"}, {"rank": 0, "world_size": 2}])
def test_caches_that_differ_see_nothing_of_each_other(url: str, change: Any) -> None:
    with cache(url) as one, cache(url, **change) as other:
        assert one.update(list(range(4)), tensors(list(range(4)))) == 4
        assert other.query(list(range(4)), np.zeros((4, other.layer, 2, 4), np.float32)) == 0


def test_damage_is_a_miss_and_is_mended(url: str) -> None:
    blobs = [np.full(LAYERS * 2 * NBYTES, i, np.uint8) for i in range(14)]
    keys = [bytes([i]) * 32 for i in range(14)]
    changes = (
        lambda v: v[:-1],
        lambda v: v + b"x",
        lambda v: b"",
        lambda v: v[:-1] + bytes([v[-1] ^ 1]),
        lambda v: bytes([v[0] ^ 1]) + v[1:],
        lambda v: v[:12] + bytes(32) + v[44:],  # another key's
        lambda v: v[:44] + bytes(32) + v[76:],  # another space's
    )
    with cache(url, chunk=1) as store:
        for key, blob in zip(keys, blobs, strict=True):
            assert store.put(key, blob)
        assert spoil(url, lambda i, value: changes[i % len(changes)](value)) == 14
        out = np.zeros_like(blobs[0])
        assert not any(store.get(key, out) for key in keys)
        assert store.stat()["damaged"] == 14 and not out.any()
        assert store.contains(keys[:2]) == [False, False]
        assert store.put(keys[3], blobs[3]) and store.get(keys[3], out)
        assert np.array_equal(out, blobs[3])
        store.remove(keys[3])
        store.remove(keys[3])
        assert not store.get(keys[3], out)


def test_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = list(range(8))
    with stores.redis() as made:
        store = cache(made)
        assert store.update(tokens, tensors(tokens)) == 8
    found = np.zeros((8, LAYERS, 2, 4), np.float32)
    assert store.query(tokens, found) == 0 and store.update(tokens, found) == 0
    for call in (
        lambda: store.contains([bytes(32)]),
        lambda: cache(made, chunk=1).put(bytes(32), np.zeros(LAYERS * 2 * NBYTES, np.uint8)),
    ):
        with pytest.raises(OSError):
            call()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: cache("nowhere"), "names no store"),
        (lambda: cache("nonsense://x"), "nonsense"),
        (lambda: cache("https://x/y"), "names no store"),
        (lambda: cache("redis://host:port"), "redis"),
        (lambda: ObjectCacheConfig("memory://kv", chunk_size=0), "chunk_size"),
        (lambda: cache("memory://kv").query([1], np.zeros((2, 2, 2, 4), "f4")), "addresses"),
        (lambda: cache("memory://kv").update([1], [[]]), "0 layers"),
        (lambda: cache("memory://kv").update([1], []), "tensors of 0"),
        (lambda: cache("memory://kv").update([1], [2], tensors([2])), "multiple of the chunk"),
        (lambda: cache("memory://kv", 1).put(b"short", np.zeros(64, np.uint8)), "32 bytes"),
        (lambda: cache("memory://kv", 1).get(bytes(32), np.zeros(63, np.uint8)), "63 bytes"),
        (lambda: cache("memory://kv").find([1]), "in place"),
    ],
)
def test_errors_name_what_is_wrong(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("token", [2**31, "a", None, 1.5])
def test_tokens_are_32_bit_integers(token: Any) -> None:
    with pytest.raises(TypeError):
        cache("memory://kv").query([token], tensors([0]))


def test_closed() -> None:
    store = cache("memory://kv")
    store.close()
    store.close()
    with pytest.raises(KVStoreError, match="closed"):
        store.query([1], tensors([1]))
