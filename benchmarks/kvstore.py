"""The shared KV store against the memory and the disk below it, in one run, the contenders in turn.

python -m benchmarks.kvstore [--rounds 9] [--json results/kvstore.json]

query    4,096 tokens of 64 KiB found in shared memory, in place, by a client in Python
update   the same stored, evicting others, against a memcpy of as many bytes on as many threads
copied   the same found and copied out, against the same memcpy
key      a blob of 64 KiB by its key: put, get
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Rounds, alternate, spread, write_json
from vllm.kvstore import KVCache, SharedMemoryCacheConfig

TOKENS, LAYERS, TENSOR = 4096, 32, 1024  # 64 KiB a token
BYTES = TOKENS * LAYERS * 2 * TENSOR
THREADS = 2


class Memcpy:
    """All of the bytes from one place to another, on `THREADS` threads; the pages are there."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(THREADS)
        self.target = np.ones(BYTES, np.uint8)

    def __call__(self, source: np.ndarray) -> None:
        flat, step = source.reshape(-1), BYTES // THREADS
        jobs = [
            self.pool.submit(np.copyto, self.target[at : at + step], flat[at : at + step])
            for at in range(0, BYTES, step)
        ]
        for job in jobs:
            job.result()


def shared(rounds: int, folder: Path) -> list[Rounds]:
    path = folder / "run" / "kv.sock"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "kvstore", "serve"]
    size = str(BYTES + BYTES // 2)  # the next update has to evict the last one
    daemon = subprocess.Popen(
        [*command, "--socket", str(path), "--size", size], stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    daemon.stdout.readline()
    try:
        config = SharedMemoryCacheConfig(path)
        store = KVCache(config, TENSOR, 2 * TOKENS, LAYERS, threads=THREADS)
        reader = KVCache(config, TENSOR, 2 * TOKENS, LAYERS, threads=THREADS)
        memcpy = Memcpy()
        rng = np.random.default_rng(0)
        source = rng.integers(0, 256, (TOKENS, LAYERS, 2, TENSOR), np.uint8)
        out = np.ones_like(source)
        number = 0

        def tokens() -> np.ndarray:
            return np.arange(TOKENS, dtype=np.int32) + number * TOKENS

        def update() -> None:
            nonlocal number
            number += 1
            assert store.update(tokens(), source) == TOKENS

        def query() -> None:
            with reader.find(tokens()) as match:
                assert match.count == TOKENS

        def copied() -> None:
            assert reader.query(tokens(), out) == TOKENS

        def against(who: str, run: Callable[[], None]) -> Rounds:
            # Three rounds more: the arena's pages are first mapped where they are first used.
            return alternate(who, {who: run, "memcpy": lambda: memcpy(source)}, rounds, warmup=3)

        results = [
            against("update", update),
            against("copied", copied),
            alternate("query", {"query": query}, rounds),
        ]
        assert np.array_equal(out, source)

        blob = source[0].reshape(-1)
        keys = [bytes(rng.integers(0, 256, 32, np.uint8)) for _ in range(1024)]

        def put() -> None:
            assert all(store.put(key, blob) for key in keys)
            for key in keys:
                store.remove(key)

        def get() -> None:
            assert all(reader.get(key, blob) for key in keys)

        timed_put = alternate("put and remove", {"put and remove": put}, rounds)
        for key in keys:
            store.put(key, blob)
        results += [timed_put, alternate("get", {"get": get}, rounds)]
        return results
    finally:
        daemon.terminate()
        daemon.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kvstore")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        update, copied, query, put, get = shared(args.rounds, Path(folder))
    for rounds, who in ((update, "update"), (copied, "copied")):
        ratio = rounds.ratio(who, "memcpy")
        rate = BYTES / rounds.median(who) / 1e9
        results[who] = {"to_memcpy": ratio, "gb_per_second": rate, "seconds": rounds.seconds}
        print(f"{who:8} {rate:6.2f} GB/s, {spread(ratio)} of memcpy on {THREADS} threads")
    rate = TOKENS / query.median("query")
    results["query"] = {"tokens_per_second": rate, "seconds": query.seconds}
    print(f"query    {rate / 1e6:6.2f} M tokens/s of {LAYERS * 2 * TENSOR} bytes, in place")
    for rounds, who in ((put, "put and remove"), (get, "get")):
        each = rounds.median(who) / 1024 * 1e6
        results[who] = {"microseconds": each, "seconds": rounds.seconds}
        print(f"{who:14} {each:6.1f} us a blob of 64 KiB")
    write_json(args.json, "kvstore", results)


if __name__ == "__main__":
    main()
