"""The Python face of shared memory: in place or copied, by tokens or by key, within its bounds."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kvstore.daemon import in_thread, process
from vllm.kvstore import (
    KVCache,
    KVStoreError,
    KVTensor,
    SharedMemoryCacheConfig,
    VineyardCacheConfig,
    numpy_view,
    torch_view,
)

LAYERS, NBYTES = 2, 16
TOKEN = LAYERS * 2 * NBYTES


def tensors(tokens: list[int], seed: int = 0) -> np.ndarray:
    """[tokens, layers, 2, 4] float32, a function of the tokens and the seed."""
    return np.stack(
        [
            np.random.default_rng([seed, t & 0xFFFFFFFF]).random((LAYERS, 2, 4), dtype=np.float32)
            for t in tokens
        ]
    )


def nowhere(count: int) -> list[Any]:
    return [[(KVTensor(), KVTensor()) for _ in range(LAYERS)] for _ in range(count)]


def cache(socket: Path, *, capacity: int = 1024, config: Any = None, **more: Any) -> KVCache:
    made = SharedMemoryCacheConfig(socket, **(config or {}))
    return KVCache(made, NBYTES, capacity, LAYERS, **more)


@pytest.mark.parametrize("verify", [False, True])
def test_in_place_and_copied(tmp_path: Path, verify: bool) -> None:
    tokens = [5, -7, 9, 2, 2]
    given = tensors(tokens)
    with in_thread(tmp_path) as daemon, cache(daemon.socket, config={"verify": verify}) as store:
        assert store.update(tokens, given) == 5
        with cache(daemon.socket, config={"verify": verify}) as other:
            found = nowhere(6)
            assert other.query([*tokens, 1], found) == 5
            view = numpy_view(found[3][1][0], np.float32, [4])
            assert np.array_equal(view, given[3, 1, 0])
            assert torch.equal(
                torch_view(found[3][1][1], torch.float32), torch.from_numpy(given[3, 1, 1])
            )
            assert found[5][0][0].data == 0
            copied = np.zeros((5, LAYERS, 2, 4), np.float32)
            assert other.query([5, -7, 9, 2, 8], copied) == 4  # to the very token
            assert np.array_equal(copied[:4], given[:4])
            assert not copied[4].any()
            assert other.query([5, -7], [9, 2, 2], copied[:3]) == 3
            assert np.array_equal(copied[:3], given[2:])
            assert other.query([5, -8], [9], copied[:1]) == 0
        with cache(daemon.socket, config={"verify": not verify}) as apart:
            assert apart.query(tokens, nowhere(5)) == 0


def test_a_match_is_views(tmp_path: Path) -> None:
    tokens = list(range(40))
    given = tensors(tokens)
    with in_thread(tmp_path) as daemon, cache(daemon.socket) as store:
        store.update(tokens, given)
        with store.find(tokens) as match:
            assert match.count == 40
            assert np.array_equal(match.numpy(7, np.float32, [4]), given[7])
            assert torch.equal(match.torch(7, torch.float32, [4]), torch.from_numpy(given[7]))
            assert np.array_equal(numpy_view(match.tensor(9, 1, 1), np.float32), given[9, 1, 1])
            assert match.addresses.shape == (40, LAYERS, 2)
            assert int(match.addresses[9, 1, 1]) == match.tensor(9, 1, 1).data
            for index in ((40, 0, 0), (-1, 0, 0), (0, LAYERS, 0), (0, 0, 2)):
                with pytest.raises(IndexError):
                    match.tensor(*index)
            assert daemon.stat()["pinned"] == 40
        assert store.find([1]).count == 0
        assert store.find([11], prefix=tokens[:11]).count == 1
        gc.collect()
        store.stat()  # behind the releases
        assert daemon.stat()["pinned"] == 0


def test_what_is_found_stays_while_it_is_held(tmp_path: Path) -> None:
    """It is neither overwritten, nor lost with the cache that found it or with the daemon."""
    slots = 4096 // TOKEN
    with in_thread(tmp_path, size=4096) as daemon, cache(daemon.socket) as store:
        first = list(range(10))
        store.update(first, tensors(first))
        reader = cache(daemon.socket)
        found = nowhere(10)
        assert reader.query(first, found) == 10
        reader.close()
        del reader
        gc.collect()
        for i in range(1, 30):
            more = [1000 * i + j for j in range(20)]
            assert store.update(more, tensors(more)) == 20
            daemon.check()
        views = [numpy_view(found[t][1][0], np.float32) for t in range(10)]
        assert np.array_equal(views, tensors(first)[:, 1, 0])
        assert daemon.stat()["entries"] <= slots
        with pytest.raises(ValueError, match="read-only"):
            views[0][0] = 1
        del found
        daemon.check()
        daemon.stop()
        assert np.array_equal(views, tensors(first)[:, 1, 0])


def test_capacity_in_tokens(tmp_path: Path) -> None:
    """As the original measured: 15 stored of 20, then 30 more: 20 stay, the old are gone."""
    with in_thread(tmp_path) as daemon, cache(daemon.socket, capacity=20) as store:
        old, new = list(range(15)), list(range(100, 130))
        assert store.update(old, tensors(old)) == 15
        assert store.update(new, tensors(new)) == 20
        assert store.find(new).count == 20
        assert store.find(old).count == 0
        assert daemon.stat()["entries"] == 20
        assert store.update(new, tensors(new)) == 20


def test_what_is_least_recently_used_goes_first(tmp_path: Path) -> None:
    with in_thread(tmp_path) as daemon, cache(daemon.socket, capacity=30) as store:
        stem, left, right = [1] * 10, [2] * 10, [3] * 10
        store.update(stem + left, tensors(stem + left))
        store.update(stem + right, tensors(stem + right))
        store.find(stem + left).release()
        store.update([9] * 5, tensors([9] * 5))
        assert store.find(stem + left).count == 20
        assert store.find(stem + right).count == 15  # pruned from its end
        assert store.find([9] * 5).count == 5


def test_by_key(tmp_path: Path) -> None:
    keys = [bytes([i]) * 32 for i in range(4)]
    blob = np.arange(TOKEN, dtype=np.uint8)
    with in_thread(tmp_path) as daemon, cache(daemon.socket, config={"verify": True}) as store:
        assert store.put(keys[0], blob)
        assert store.put(keys[2], blob[::-1].copy())
        assert store.contains(keys) == [True, False, True, False]
        out = np.zeros_like(blob)
        assert store.get(keys[2], out)
        assert np.array_equal(out, blob[::-1])
        assert not store.get(keys[1], out)
        store.remove(keys[0])
        assert store.contains(keys) == [False, False, True, False]
        store.clear()
        assert not any(store.contains(keys))
        with pytest.raises(ValueError, match="32 bytes"):
            store.put(b"short", blob)
        with pytest.raises(ValueError, match="63 bytes, not 64"):
            store.put(keys[0], blob[1:])


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "b"},
        {"rank": 0, "world_size": 2},
        {"config": {"llm_cache_object_name": "x"}},
    ],
)
def test_caches_that_differ_see_nothing_of_each_other(tmp_path: Path, change: Any) -> None:
    with (
        in_thread(tmp_path) as daemon,
        cache(daemon.socket) as one,
        cache(daemon.socket, **change) as other,
    ):
        one.update([1, 2], tensors([1, 2]))
        assert other.find([1, 2]).count == 0
        other.update([1, 2], tensors([1, 2], seed=1))
        other.clear()
        assert one.find([1, 2]).count == 2


def test_one_slot_size_a_daemon(tmp_path: Path) -> None:
    with in_thread(tmp_path) as daemon:
        with cache(daemon.socket) as store:
            store.update([1], tensors([1]))
            config = SharedMemoryCacheConfig(daemon.socket)
            with pytest.raises(ValueError, match="slots are of 64 bytes and a token needs 32"):
                KVCache(config, NBYTES, layer=1)
            with pytest.raises(ValueError, match="does not fit"):
                KVCache(config, 1 << 30)
            store.clear()
        with KVCache(config, NBYTES, layer=1) as other:  # nothing stored and nobody there
            assert other.query([1], [[(KVTensor(), KVTensor())]]) == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: SharedMemoryCacheConfig(""), "socket is empty"),
        (lambda s: SharedMemoryCacheConfig(s, block_size=0), "block_size"),
        (lambda s: SharedMemoryCacheConfig(s, sync_interval=-1), "sync_interval"),
        (lambda s: SharedMemoryCacheConfig(s, llm_cache_object_name=""), "llm_cache_object_name"),
        (lambda s: cache(s).query([1], []), "1 tokens, but tensors of 0"),
        (lambda s: cache(s).update([1], nowhere(1)), "the K of token 0, layer 0 has no data"),
        (lambda s: cache(Path("/" + "x" * 200)), "socket"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, make: Any, says: str) -> None:
    with in_thread(tmp_path) as daemon, pytest.raises(ValueError, match=says):
        make(daemon.socket)


def test_too_many_tokens_in_one_call(tmp_path: Path) -> None:
    with in_thread(tmp_path) as daemon, cache(daemon.socket) as store:
        with pytest.raises(ValueError, match="tokens: more than 1048576"):
            store.find(np.zeros(2**20 + 1, np.int32))
        assert store.find(np.zeros(2**20, np.int32)).count == 0


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KVStoreError, match="no daemon answers"):
        cache(tmp_path / "none.sock")
    with cache(tmp_path / "none.sock", config={"lazy": True}) as store:
        assert not store.attached
        assert store.update([1], tensors([1])) == 0
        assert store.find([1]).count == 0
        assert store.contains([bytes(32)]) == [False]
        assert not store.put(bytes(32), np.zeros(TOKEN, np.uint8))
        store.clear()
        assert store.stat()["entries"] == 0


def test_the_original_names_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VineyardCacheConfig is SharedMemoryCacheConfig
    with process(tmp_path / "run" / "kv.sock") as daemon:
        assert "serving" in daemon.first_line
        monkeypatch.setenv("VINEYARD_LLM_CACHE_SHARED_MEMORY", "1")
        with pytest.raises(ValueError, match="SOCKET"):
            KVCache()
        monkeypatch.setenv("VINEYARD_LLM_CACHE_SOCKET", str(tmp_path / "run" / "kv.sock"))
        monkeypatch.setenv("VINEYARD_LLM_CACHE_BLOCK_SIZE", "7")
        store = KVCache(tensor_bytes=NBYTES, layer=LAYERS)
        assert store.chunk_size == 7
        assert store.batched_update([1], tensors([1])) == 1
        assert store.batched_query([1], nowhere(1)) == 1
        store.close()
        with pytest.raises(KVStoreError, match="closed"):
            store.find([1])
