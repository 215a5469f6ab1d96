"""Programs written for the original run here; only the package's name and their paths change."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kvstore.daemon import in_thread
from tests.kvstore.test_files_api import as_list
from vllm.kvstore import FileCacheConfig, KVCache, KVTensor, VineyardCacheConfig

PROGRAMS = Path(__file__).parent / "programs"


def run(name: str, here: Path, paths: dict[str, str]) -> None:
    text = (PROGRAMS / name).read_text()
    for old, new in paths.items():
        assert old in text
        text = text.replace(old, new)
    (here / name).write_text(text)
    runpy.run_path(str(here / name), run_name="__main__")


def test_shared_memory(tmp_path: Path) -> None:
    with in_thread(tmp_path) as daemon:
        run("shared.py", tmp_path, {"/tmp/vineyard_test.sock": str(daemon.socket)})


def test_files(tmp_path: Path) -> None:
    run("files.py", tmp_path, {"/tmp/vineyard/llm_cache": str(tmp_path / "files")})


@pytest.fixture(params=["shared", "files"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "files":
        yield FileCacheConfig(2, 2, str(tmp_path / "files"))
        return
    with in_thread(tmp_path) as daemon:
        yield VineyardCacheConfig(str(daemon.socket), 2)


SPELLINGS = {
    "positions, the first": lambda call, tokens, given: call(tokens, given),
    "positions, the later": lambda call, tokens, given: call(None, tokens, given),
    "an empty prefix": lambda call, tokens, given: call([], tokens, given),
    "names, the first": lambda call, tokens, given: call(
        prefix=None, tokens=tokens, kv_state_list=given
    ),
    "names, the later": lambda call, tokens, given: call(tokens=tokens, kv_cache_list=given),
    "mixed": lambda call, tokens, given: call(tokens, given, prefix=None),
}


@pytest.mark.parametrize("call", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_a_call(config: Any, call: Any) -> None:
    tokens = [1, 2, -3, 2**31 - 1]
    given = np.random.default_rng(0).random((4, 2, 2, 4), np.float32)
    found = np.zeros_like(given)
    cache = KVCache(config, 16, 1024, 2)
    assert call(cache.update, tokens, as_list(given)) == 4
    assert call(cache.query, tokens, as_list(found)) == 4
    assert np.array_equal(found, given)
    cache.kv_cache_manager.close()
    with pytest.raises(RuntimeError, match="closed"):
        cache.query(tokens, as_list(found))


def test_a_suffix_behind_its_prefix_and_batches(config: Any) -> None:
    tokens, given = [1, 2, 3, 4, 5, 6], np.random.default_rng(0).random((6, 2, 2, 4), np.float32)
    found = np.zeros_like(given)
    cache = KVCache(cache_config=config, tensor_nbytes=16, cache_capacity=64, layer=2)
    assert cache.batched_update(tokens[:2], as_list(given[:2])) == 2
    assert cache.update(tokens[:2], tokens[2:], as_list(given[2:])) == 4
    assert cache.query(tokens[:2], tokens[2:], as_list(found[2:])) == 4
    assert cache.batched_query(tokens[:2], as_list(found[:2])) == 2
    assert np.array_equal(found, given)


def test_every_spelling_of_a_configuration(tmp_path: Path) -> None:
    first = FileCacheConfig(
        chunk_size=2,
        split_number=3,
        root=str(tmp_path),
        client_gc_interval=7,
        ttl=8,
        enable_global_gc=True,
        global_gc_interval=9,
        global_ttl=10,
    )
    later = FileCacheConfig(2, 3, str(tmp_path), gc_interval=7, ttl=8, enable_global_gc=True)
    for config in (first, later):
        assert (config.chunk_size, config.split_number, config.hash_chunk_size) == (2, 3, 3)
        assert (config.client_gc_interval, config.gc_interval, config.ttl) == (7, 7, 8)
        assert config.enable_global_gc
    assert (first.global_gc_interval, first.global_ttl) == (9, 10)
    assert (later.global_gc_interval, later.global_ttl) == (10800, 10800)
    names = ("llmCacheSyncLock", "llm_cache_object", "llm_refcnt_object")
    by_position = VineyardCacheConfig("S", 5, 3, *names)
    assert vars(by_position) == vars(VineyardCacheConfig(socket="S"))
    for spelled in ({"tensor_bytes": 16}, {"tensor_nbytes": 16}):
        cache = KVCache(cache_config=first, cache_capacity=10, layer=1, **spelled)
        assert (cache.tensor_bytes, cache.tensor_nbytes, cache.chunk_size) == (16, 16, 2)
        assert (cache.cache_capacity, cache.layer, cache.cache_config) == (10, 1, first)
    tensor = KVTensor(1, 2)
    tensor.data, tensor.length = 3, 4
    assert (tensor.data, tensor.length) == (3, 4)
