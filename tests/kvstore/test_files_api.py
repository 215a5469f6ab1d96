"""The Python face of a store of files: spellings, arrays, lists, errors that name the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm.kvstore import FileCacheConfig, KVCache, KVStoreError, KVTensor

LAYERS, NBYTES = 2, 16


def tensors(tokens: list[int], seed: int = 0) -> np.ndarray:
    """[tokens, layers, 2, 4] float32, a function of the tokens and the seed."""
    return np.stack(
        [np.random.default_rng([seed, t]).random((LAYERS, 2, 4), dtype=np.float32) for t in tokens]
    )


def as_list(array: np.ndarray) -> list[Any]:
    return [
        [tuple(KVTensor(kv.ctypes.data, kv.nbytes) for kv in pair) for pair in token]
        for token in array
    ]


def cache(root: Path, **more: Any) -> KVCache:
    config = FileCacheConfig(chunk_size=4, root=root, **more.pop("config", {}))
    return KVCache(config, tensor_nbytes=NBYTES, layer=LAYERS, **more)


@pytest.mark.parametrize("with_array", [True, False])
def test_what_was_stored_is_found(tmp_path: Path, with_array: bool) -> None:
    tokens = list(range(10))
    given, found = tensors(tokens), np.zeros((10, LAYERS, 2, 4), dtype=np.float32)
    form = (lambda a: a) if with_array else as_list
    with cache(tmp_path, config={"direct": False}) as store:
        assert store.attached and store.stat()["direct"] == 0
        assert store.update(tokens, form(given)) == 8  # the broken chunk stays out
        assert store.query(None, tokens, form(found)) == 8
    assert np.array_equal(found[:8], given[:8])
    assert not found[8:].any()
    with cache(tmp_path) as again:
        other = [*tokens[:6], 99, 98, 97, 96]
        assert again.query(other, form(found)) == 4  # they part at 6, in the second chunk
        assert again.query(tokens[:4], tokens[4:], form(found[4:])) == 4


@pytest.mark.parametrize("change", [{"layer": 1}, {"namespace": "b"}, {"rank": 0, "world_size": 2}])
def test_caches_that_differ_see_nothing_of_each_other(tmp_path: Path, change: Any) -> None:
    """The original's tenth defect: no file said what it was of."""
    tokens = list(range(4))
    config = FileCacheConfig(chunk_size=4, root=tmp_path)
    with cache(tmp_path) as one, KVCache(config, NBYTES, **{"layer": LAYERS, **change}) as other:
        assert one.update(tokens, tensors(tokens)) == 4
        found = np.zeros((4, other.layer, 2, 4), dtype=np.float32)
        assert other.query(tokens, found) == 0


def test_both_spellings(tmp_path: Path) -> None:
    old = FileCacheConfig(root=tmp_path, split_number=3, client_gc_interval=7)
    new = FileCacheConfig(root=tmp_path, hash_chunk_size=3, gc_interval=7)
    assert (old.split_number, old.client_gc_interval) == (new.hash_chunk_size, new.gc_interval)
    assert KVCache(old, tensor_bytes=10).tensor_nbytes == KVCache(new, 10).tensor_bytes == 10
    with pytest.raises(ValueError, match="split_number"):
        FileCacheConfig(root=tmp_path, split_number=3, hash_chunk_size=2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: FileCacheConfig(chunk_size=0, root=root), "chunk_size"),
        (lambda root: FileCacheConfig(), "root is empty"),
        (lambda root: FileCacheConfig(root=root, hash_chunk_size=5), "hash_chunk_size"),
        (lambda root: FileCacheConfig(root=root, sync="often"), "sync"),
        (lambda root: FileCacheConfig(root=root, socket="/a"), "socket"),
        (lambda root: KVCache(None), "cache_config"),
        (lambda root: cache(root, rank=1), "world_size"),
        (lambda root: cache(root, rank=2, world_size=2), "rank"),
        (lambda root: cache(root, cache_capacity=0), "cache_capacity"),
        (lambda root: cache(root).find([1]), "only shared memory has anything in place"),
        (lambda root: cache(root).update([1], []), "1 tokens, but tensors of 0"),
        (lambda root: cache(root).update([1], [[]]), "0 layers"),
        (lambda root: cache(root).update([1], np.zeros((1, 2, 2, 5), "f4")), "20 bytes, not 16"),
        (lambda root: cache(root).update([1], np.zeros((1, 2, 3, 4), "f4")), r"\[tokens, 2, 2"),
        (lambda root: cache(root).update([1], [1], as_list(tensors([1]))), "multiple of the chunk"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(tmp_path)


def test_values_of_another_size_than_keys_are_refused(tmp_path: Path) -> None:
    """The original's ninth defect: V was written with K's length."""
    pair = (KVTensor(1, NBYTES), KVTensor(1, NBYTES - 1))
    with pytest.raises(ValueError, match="the V of token 0, layer 1 is not of tensor_bytes"):
        cache(tmp_path).update([1], [[(pair[0], pair[0]), pair]])


@pytest.mark.parametrize("token", [2**31, "a", None, 1.5])
def test_tokens_are_32_bit_integers(tmp_path: Path, token: Any) -> None:
    with pytest.raises(TypeError):
        cache(tmp_path).query([token], tensors([0]))


def test_closed(tmp_path: Path) -> None:
    store = cache(tmp_path)
    store.close()
    store.close()
    with pytest.raises(KVStoreError, match="closed"):
        store.query([1], tensors([1]))
    assert not store.attached
    with pytest.raises(KVStoreError, match="closed"):
        store.remove(bytes(32))


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINEYARD_LLM_CACHE_FILESYSTEM", "1")
    monkeypatch.setenv("VINEYARD_LLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("VINEYARD_LLM_CACHE_CHUNK_SIZE", "2")
    assert KVCache(tensor_nbytes=NBYTES, layer=LAYERS).chunk_size == 2
    monkeypatch.setenv("VINEYARD_LLM_CACHE_CHUNK_SIZE", "two")
    with pytest.raises(ValueError, match="CHUNK_SIZE"):
        KVCache()
