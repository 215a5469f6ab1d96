"""What writes and reads files against fio, in one throttled control group, in turn.

A bare comparison is noise where others use the disk too, and the group's limit is lower than what
they leave. Needs fio and, for the group, root; without the group it says so and compares bare.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import alternate

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


def installed() -> None:
    """Ends the program when fio is not there."""
    if shutil.which("fio") is None:
        sys.exit("fio is not installed")


@dataclass(frozen=True)
class Fio:
    """fio as it is compared: with direct I/O, `block_bytes` at a time, `total` bytes in all.

    end_fsync: whether it flushes when it is done. anew: whether it makes new files in every round,
    as ours does: to write again what is there costs less.
    """

    block_bytes: int
    total: int
    threads: int
    end_fsync: bool = False
    anew: bool = False

    def command(self, folder: Path, way: str) -> list[str]:
        return [
            "fio",
            "--name=fio",
            f"--directory={folder}",
            f"--rw={way}",
            f"--bs={self.block_bytes}",
            f"--size={self.total // self.threads}",
            f"--numjobs={self.threads}",
            "--direct=1",
            f"--end_fsync={int(self.end_fsync)}",
            "--fallocate=none",
            "--group_reporting",
            "--output-format=json",
        ]

    def seconds(self, members: Path | None, folder: Path, way: str) -> float:
        told = json.loads(within(members, self.command(folder, way)))
        return self.total / float(told["jobs"][0][way]["bw_bytes"])


def against(
    fio: Fio,
    own: Sequence[str],
    folder: Path,
    *,
    rate: int,
    rounds: int,
    writes: Sequence[str],
    read: str,
) -> dict[str, Any]:
    """Seconds and ratios of a module of ours and fio, at `rate` bytes a second.

    own: the module and its arguments; `--own ROOT` is added, and it prints the seconds of all
    `writes` and of `read`, by these names, and whether its I/O was `direct`.

    No round deletes what another made: an ext4 without a journal passes over every inode that was
    deleted in the last minutes before it makes a file, which cost more than all the rest.
    """
    told: dict[str, float] = {}
    number = itertools.count()
    there = folder

    def ours() -> float:
        root = folder / f"own{next(number)}"
        told.update(json.loads(within(members, [sys.executable, "-m", *own, "--own", str(root)])))
        return told[writes[0]]

    def fio_write() -> float:
        nonlocal there
        if fio.anew:
            there = folder / f"fio{next(number)}"
            there.mkdir()
        return fio.seconds(members, there, "write")

    with throttled(folder, rate) as members:
        contenders: dict[str, Callable[[], float | None]] = {
            writes[0]: ours,
            "fio_write": fio_write,
            **{name: partial(told.__getitem__, name) for name in (*writes[1:], read)},
            "fio_read": lambda: fio.seconds(members, there, "read"),
        }
        timed = alternate("files", contenders, rounds)
        return {
            "throttled_to": rate if members is not None else None,
            "direct": bool(told["direct"]),
            "seconds": timed.seconds,
            **{f"{write}_of_fio": timed.ratio(write, "fio_write") for write in writes},
            f"{read}_of_fio": timed.ratio(read, "fio_read"),
        }
