"""The disk tier against fio: the same block size, direct I/O and as many threads, in one throttled
control group, in turn.

python -m benchmarks.disk_tier [--rounds 3] [--folder DIR] [--json results/disk_tier.json]

A bare comparison is noise where others use the disk too, and the group's limit is lower than what
they leave. Needs fio and, for the group, root; without the group it says so and compares bare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import alternate, spread, write_json
from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover
from vllm.kv.tiers.disk import DiskTier

THREADS, BATCH = 2, 16
GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def throttled(folder: Path, rate: int) -> Iterator[Path | None]:
    """A group whose members may read and write `rate` bytes a second of the folder's disk.

    Gives the file that takes its members; None where no such group can be made.
    """
    number = folder.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    second = (GROUPS / "cgroup.controllers").exists()
    group = GROUPS / f"vllm-disk-{os.getpid()}" if second else GROUPS / "blkio" / "vllm-disk"
    try:
        group.mkdir()
        if second:
            (group / "io.max").write_text(f"{device} rbps={rate} wbps={rate}")
        else:
            for way in ("read", "write"):
                (group / f"blkio.throttle.{way}_bps_device").write_text(f"{device} {rate}")
    except OSError as error:
        print(f"No throttled group ({error}): what follows is a bare comparison")
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def within(members: Path | None, command: list[str]) -> str:
    """Run a command in the group; its output."""
    if members is not None:
        command = ["sh", "-c", f'echo $$ > {members} && exec "$@"', "sh", *command]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fio(folder: Path, way: str, block_bytes: int, blocks: int) -> list[str]:
    return [
        "fio",
        "--name=fio",
        f"--directory={folder}",
        f"--rw={way}",
        f"--bs={block_bytes}",
        f"--size={block_bytes * blocks // THREADS}",
        f"--numjobs={THREADS}",
        "--direct=1",
        "--fallocate=none",
        "--group_reporting",
        "--output-format=json",
    ]


def fio_seconds(told: str, way: str, total: int) -> float:
    return total / json.loads(told)["jobs"][0][way]["bw_bytes"]


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


def against_fio(folder: Path, rounds: int, rate: int, block_bytes: int, blocks: int) -> Any:
    """Seconds and ratios for writes and reads of `blocks` blobs."""
    if shutil.which("fio") is None:
        return {"missing": "fio is not installed"}
    total = block_bytes * blocks
    ours: dict[str, float] = {}
    folder.mkdir(exist_ok=True)

    def write() -> float:
        shutil.rmtree(folder / "tier", ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.disk_tier", "--own", str(folder / "tier")]
        command += ["--block-bytes", str(block_bytes), "--blocks", str(blocks)]
        ours.update(json.loads(within(members, command)))
        return ours["write"]

    def of_fio(way: str) -> float:
        return fio_seconds(within(members, fio(folder, way, block_bytes, blocks)), way, total)

    with throttled(folder, rate) as members:
        timed = alternate(
            "disk",
            {
                "write": write,
                "fio_write": lambda: of_fio("write"),
                "read": lambda: ours["read"],
                "fio_read": lambda: of_fio("read"),
            },
            rounds,
        )
        return {
            "throttled_to": rate if members is not None else None,
            "direct": bool(ours["direct"]),
            "seconds": timed.seconds,
            "write_of_fio": timed.ratio("write", "fio_write"),
            "read_of_fio": timed.ratio("read", "fio_read"),
        }


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
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = against_fio(Path(folder), args.rounds, args.rate, args.block_bytes, args.blocks)
    if "missing" in result:
        sys.exit(result["missing"])
    print(f"throttled to {result['throttled_to']} B/s, direct I/O {result['direct']}")
    print(f"{'disk write, of fio':36} {spread(result['write_of_fio'])}")
    print(f"{'disk read, of fio':36} {spread(result['read_of_fio'])}")
    write_json(args.json, "disk_tier", result)


if __name__ == "__main__":
    main()
