"""The store's files against fio: the same file size, in one throttled control group, in turn.

python -m benchmarks.kvstore_files [--rounds 10] [--rates 400 700] [--folder DIR] [--json FILE]

Chunks of 16 tokens, 64 KiB a token: a file of 1 MiB and a page. Each round makes new chunks
(update), drops the page cache and reads them (query), and has fio write and read as much in blocks
of the same size with direct I/O and as many threads. Memory is distinct for each token. With
`--sync data` both sides also flush: each file of ours, fio's at their end. Needs fio and, for the
group, root; without it the comparison is bare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.disk_tier import throttled, within
from benchmarks.measure import alternate, spread, write_json
from vllm.kvstore import FileCacheConfig, KVCache

CHUNK, LAYERS, TENSOR = 16, 8, 4096  # 64 KiB a token
THREADS = 8


def fio(folder: Path, way: str, chunks: int, sync: str) -> list[str]:
    size = CHUNK * LAYERS * 2 * TENSOR
    return [
        "fio",
        "--name=fio",
        f"--directory={folder}",
        f"--rw={way}",
        f"--bs={size}",
        f"--size={size * chunks // THREADS}",
        f"--numjobs={THREADS}",
        "--direct=1",
        f"--end_fsync={int(sync != 'none')}",
        "--fallocate=none",
        "--group_reporting",
        "--output-format=json",
    ]


def own(root: Path, chunks: int, sync: str) -> dict[str, float]:
    """Seconds in which a cache stores so many chunks, and finds them again."""
    config = FileCacheConfig(chunk_size=CHUNK, root=root, sync=sync)
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
        return {"update": update, "query": query, "direct": float(cache.attached)}


def against_fio(folder: Path, rounds: int, rate: int, chunks: int, sync: str) -> Any:
    total = chunks * CHUNK * LAYERS * 2 * TENSOR
    ours: dict[str, float] = {}
    root = folder / "kv"

    def update() -> float:
        shutil.rmtree(root, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.kvstore_files", "--own", str(root)]
        command += ["--chunks", str(chunks), "--sync", sync]
        ours.update(json.loads(within(members, command)))
        return ours["update"]

    def of_fio(way: str) -> float:
        if way == "write":  # new files, as ours are: to write again what is there costs less
            for old in folder.glob("fio.*"):
                old.unlink()
        told = json.loads(within(members, fio(folder, way, chunks, sync)))
        return total / float(told["jobs"][0][way]["bw_bytes"])

    with throttled(folder, rate) as members:
        timed = alternate(
            "files",
            {
                "update": update,
                "fio_write": lambda: of_fio("write"),
                "query": lambda: ours["query"],
                "fio_read": lambda: of_fio("read"),
            },
            rounds,
        )
        return {
            "throttled_to": rate if members is not None else None,
            "direct": bool(ours["direct"]),
            "seconds": timed.seconds,
            "update_of_fio": timed.ratio("update", "fio_write"),
            "query_of_fio": timed.ratio("query", "fio_read"),
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
    if shutil.which("fio") is None:
        sys.exit("fio is not installed")
    results = {}
    for rate in args.rates:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            result = against_fio(Path(folder), args.rounds, rate << 20, args.chunks, args.sync)
        results[str(rate)] = result
        print(f"throttled to {result['throttled_to']} B/s, direct I/O {result['direct']}")
        print(f"{'update, of fio':36} {spread(result['update_of_fio'])}")
        print(f"{'query, of fio':36} {spread(result['query_of_fio'])}")
    write_json(args.json, "kvstore_files", results)


if __name__ == "__main__":
    main()
