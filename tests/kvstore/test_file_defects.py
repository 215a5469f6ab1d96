"""The defects of the original's files, each as a test that fails on its behaviour.

The ninth (unequal K and V) and the tenth (caches that differ) are in test_files_api.py.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np

from vllm.kvstore import FileCacheConfig, KVCache

from .test_files_api import LAYERS, cache, tensors


def chunks(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if len(path.name) == 64)


def empty(tokens: list[int]) -> np.ndarray:
    return np.zeros((len(tokens), LAYERS, 2, 4), dtype=np.float32)


def test_1_a_truncated_file_is_no_match(tmp_path: Path) -> None:
    tokens = list(range(4))
    with cache(tmp_path) as store:
        store.update(tokens, tensors(tokens))
        (path,) = chunks(tmp_path)
        os.truncate(path, path.stat().st_size - 10)
        found = empty(tokens)
        assert store.query(tokens, found) == 0 and not found.any()


def test_2_tokens_whose_old_hashes_collide_stand_side_by_side(tmp_path: Path) -> None:
    """MurmurHash3 of both is 1dba84a2: updating one deleted the other."""
    one, two = [49976, 16000, 22926, 5427], [11607, 31020, 8642, 26468]
    with cache(tmp_path) as store:
        assert store.update(one, tensors(one)) == store.update(two, tensors(two)) == 4
        for tokens in (one, two):
            found = empty(tokens)
            assert store.query(tokens, found) == 4 and np.array_equal(found, tensors(tokens))


def test_3_a_missing_chunk_takes_no_others_with_it(tmp_path: Path) -> None:
    tokens = list(range(40))
    given, found = tensors(tokens), empty(tokens)
    with cache(tmp_path) as store:
        assert store.update(tokens, given) == 40
        before = set(chunks(tmp_path))
        store.update(tokens[:4], given[:4])
        first = max(before, key=lambda path: path.stat().st_mtime_ns)  # touched just now
        first.unlink()
        assert store.query(tokens, found) == 0
        assert store.update(tokens[:4], tokens[4:], given[4:]) == 0  # its prefix is not there
        assert set(chunks(tmp_path)) == before - {first}
        assert store.update(tokens, given) == 40 and store.query(tokens, found) == 40
    assert np.array_equal(found, given)


def test_4_what_is_read_is_in_use(tmp_path: Path) -> None:
    """Access times, which most mounts do not keep, decided: a hot file vanished."""
    config = FileCacheConfig(4, root=tmp_path, ttl=0.5, gc_interval=0.05)
    hot, cold = list(range(4)), list(range(4, 8))
    with KVCache(config, 16, layer=LAYERS) as store:
        store.update(hot, tensors(hot))
        store.update(cold, tensors(cold))
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert store.query(hot, empty(hot)) == 4
            time.sleep(0.02)
        assert store.query(cold, empty(cold)) == 0


def test_5_a_reader_never_harms_a_writer(tmp_path: Path) -> None:
    """Readers deleted the empty file that writers made first, and sometimes the whole one."""
    tokens = list(range(400))
    given = tensors(tokens)
    with cache(tmp_path) as writer, cache(tmp_path) as reader:
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                reader.query(tokens, empty(tokens))

        thread = threading.Thread(target=read)
        thread.start()
        for at in range(0, 400, 4):
            assert writer.update(tokens[:at], tokens[at : at + 4], given[at : at + 4]) == 4
        stop.set()
        thread.join()
        assert reader.query(tokens, empty(tokens)) == 400
        assert reader.stat()["damaged"] == 0


def test_6_names_aside_are_no_process_numbers(tmp_path: Path, monkeypatch) -> None:
    """Two hosts of one filesystem, with equal process numbers, wrote to one file."""
    tokens = list(range(4))
    seen: set[str] = set()
    with cache(tmp_path) as one, cache(tmp_path) as two:
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                seen.update(path.name for path in tmp_path.rglob(".new-*"))

        thread = threading.Thread(target=watch)
        thread.start()
        for i in range(100):
            own = [i * 10 + t for t in tokens]
            for store in (one, two):
                assert store.update(own, tensors(own)) == 4
        done.set()
        thread.join()
    assert all(len(name) == len(".new-") + 32 and str(os.getpid()) not in name for name in seen)
    assert not list(tmp_path.rglob(".new-*"))
