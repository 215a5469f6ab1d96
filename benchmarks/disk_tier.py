"""The disk tier against fio: the same block size, direct I/O and as many threads, in one throttled
control group, in turn.

python -m benchmarks.disk_tier [--rounds 3] [--folder DIR] [--json results/disk_tier.json]

See `benchmarks.fio` for what it needs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.fio import Fio, against, installed
from benchmarks.measure import spread, write_json
from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover
from vllm.kv.tiers.disk import DiskTier

THREADS, BATCH = 2, 16


def move(folder: Path, block_bytes: int, blocks: int) -> dict[str, float]:
    """Seconds in which the mover stores so many blocks on the disk tier, and loads them again."""
    tier = DiskTier(folder, block_bytes, bytes(32))
    mover = Mover([tier], threads=THREADS, max_queued=blocks, deadline=3600)
    data = np.random.default_rng(0).integers(0, 255, (blocks, block_bytes), dtype=np.uint8)
    keys = [Key(i.to_bytes(32, "big")) for i in range(blocks)]
    seconds = {"direct": float(tier.direct)}
    for kind, way in ((Kind.STORE, "write"), (Kind.LOAD, "read")):
        start = time.perf_counter()
        for at in range(0, blocks, BATCH):
            views = [memoryview(data[i]) for i in range(at, min(at + BATCH, blocks))]
            mover.submit(Job(kind, "disk", keys[at : at + BATCH], views))
        while mover.busy:
            mover.wait(0.1)
            assert all(all(job.ok) for job in mover.poll()[0]), "a transfer failed"
        seconds[way] = time.perf_counter() - start
    mover.shutdown()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to measure; default: a temporary one")
    parser.add_argument("--rate", type=int, default=100 << 20, help="bytes a second of the group")
    parser.add_argument("--block-bytes", type=int, default=1 << 20)
    parser.add_argument("--blocks", type=int, default=160)
    parser.add_argument("--json", help="where to write the results")
    parser.add_argument("--own", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own:
        print(json.dumps(move(Path(args.own), args.block_bytes, args.blocks)))
        return
    installed()
    own = ["benchmarks.disk_tier", "--block-bytes", str(args.block_bytes)]
    own += ["--blocks", str(args.blocks)]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = against(
            Fio(args.block_bytes, args.block_bytes * args.blocks, THREADS),
            own,
            Path(folder),
            rate=args.rate,
            rounds=args.rounds,
            writes=["write"],
            read="read",
        )
    print(f"throttled to {result['throttled_to']} B/s, direct I/O {result['direct']}")
    print(f"{'disk write, of fio':36} {spread(result['write_of_fio'])}")
    print(f"{'disk read, of fio':36} {spread(result['read_of_fio'])}")
    write_json(args.json, "disk_tier", result)


if __name__ == "__main__":
    main()
