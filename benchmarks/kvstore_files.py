"""The store's files against fio: the same file size, in one throttled control group, in turn.

python -m benchmarks.kvstore_files [--rounds 10] [--rates 400 700] [--folder DIR] [--json FILE]

Chunks of 16 tokens, 64 KiB a token: a file of 1 MiB and a page. Each round makes new chunks
(update), drops the page cache and reads them (query), stores as many others in their place (update
of a full store), and has fio write and read as much in blocks of the same size with direct I/O and
as many threads: its files are new, too, but one for each thread, not one for each block. Memory is
distinct for each token. With `--sync data` both sides also flush: each file of ours, fio's at their
end. Needs fio and, for the group, root; without it the comparison is bare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.fio import Fio, against, installed
from benchmarks.measure import spread, write_json
from vllm.kvstore import FileCacheConfig, KVCache

CHUNK, LAYERS, TENSOR = 16, 8, 4096  # 64 KiB a token
THREADS = 8


def own(root: Path, chunks: int, sync: str) -> dict[str, float]:
    """Seconds in which a cache stores so many chunks, finds them, and stores others instead."""
    quota = chunks * (CHUNK * LAYERS * 2 * TENSOR + 4096)  # a page for a chunk's header
    config = FileCacheConfig(chunk_size=CHUNK, root=root, sync=sync, quota=quota)
    tokens = np.arange(chunks * CHUNK, dtype=np.int32)
    shape = (len(tokens), LAYERS, 2, TENSOR)
    given = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    found = np.ones(shape, dtype=np.uint8)  # touched: an engine's memory is there before
    with KVCache(config, TENSOR, layer=LAYERS, threads=THREADS) as cache:
        start = time.perf_counter()
        assert cache.update(tokens, given) == len(tokens)
        update = time.perf_counter() - start
        os.sync()
        with contextlib.suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("1")
        start = time.perf_counter()
        assert cache.query(tokens, found) == len(tokens)
        query = time.perf_counter() - start
        assert np.array_equal(given, found)
        start = time.perf_counter()
        assert cache.update(tokens + len(tokens), given) == len(tokens)
        full = time.perf_counter() - start
        assert cache.query(tokens + len(tokens), found) == len(tokens)
        assert np.array_equal(given, found)
        return {
            "update": update,
            "update_full": full,
            "query": query,
            "direct": float(cache.stat()["direct"]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rates", type=int, nargs="+", default=[400, 700], help="MiB a second")
    parser.add_argument("--folder", help="on the disk to measure; default: a temporary one")
    parser.add_argument("--chunks", type=int, default=512)
    parser.add_argument("--sync", choices=["none", "data"], default="none")
    parser.add_argument("--json", help="where to write the results")
    parser.add_argument("--own", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own:
        print(json.dumps(own(Path(args.own), args.chunks, args.sync)))
        return
    installed()
    size = CHUNK * LAYERS * 2 * TENSOR
    fio = Fio(size, size * args.chunks, THREADS, end_fsync=args.sync != "none", anew=True)
    ours = ["benchmarks.kvstore_files", "--chunks", str(args.chunks), "--sync", args.sync]
    results = {}
    for rate in args.rates:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            result = against(
                fio,
                ours,
                Path(folder),
                rate=rate << 20,
                rounds=args.rounds,
                writes=["update", "update_full"],
                read="query",
            )
        results[str(rate)] = result
        print(f"throttled to {result['throttled_to']} B/s, direct I/O {result['direct']}")
        print(f"{'update, of fio':36} {spread(result['update_of_fio'])}")
        print(f"{'update of a full store, of fio':36} {spread(result['update_full_of_fio'])}")
        print(f"{'query, of fio':36} {spread(result['query_of_fio'])}")
    write_json(args.json, "kvstore_files", results)


if __name__ == "__main__":
    main()
