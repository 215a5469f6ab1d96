"""The disk tier: whatever happens to a file, a read gives the right bytes or none at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.kv.lineage import Key
from vllm.kv.tiers.disk import ASIDE, HEADER, HEADER_BYTES, DiskTier, _write_all

BYTES = 5000
PRINT = bytes(range(32))


def key(number: int) -> Key:
    return Key(number.to_bytes(2, "big") * 16)


def payload(number: int) -> bytes:
    return bytes((number * 7 + i) % 251 for i in range(BYTES))


@pytest.fixture(params=[True, False], ids=["direct", "buffered"])
def tier(tmp_path, request):
    made = DiskTier(tmp_path, BYTES, PRINT)
    if request.param and not made.direct:
        pytest.skip("this file system has no direct I/O")
    made.direct = request.param
    return made


def write(tier: DiskTier, number: int) -> Path:
    tier.write(key(number), memoryview(bytearray(payload(number))))
    return tier._path(key(number))


def read(tier: DiskTier, number: int) -> bytes | None:
    """None where there is nothing, or it cannot be read."""
    buffer = bytearray(BYTES)
    try:
        found = tier.read(key(number), memoryview(buffer))
    except OSError:
        return None
    return bytes(buffer) if found else None


def files(tier: DiskTier) -> list[Path]:
    return [p for p in tier._folder.rglob("*") if p.is_file() or p.is_symlink()]


def test_round_trip_also_in_another_process_life(tier, tmp_path):
    assert read(tier, 1) is None
    write(tier, 1)
    write(tier, 2)
    assert read(tier, 1) == payload(1)
    assert tier.contains([key(1), key(2), key(3)]) == [True, True, False]
    again = DiskTier(tmp_path, BYTES, PRINT)
    assert {k for k, _ in again.scan()} == {key(1), key(2)}
    assert [read(again, n) for n in (1, 2)] == [payload(1), payload(2)]
    again.delete(key(1))
    again.delete(key(1))
    assert read(again, 1) is None
    assert read(again, 2) == payload(2)


def test_modes(tier):
    path = write(tier, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    for folder in (path.parent, tier._folder):
        assert folder.stat().st_mode & 0o777 == 0o700


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, HEADER_BYTES + BYTES - 1), bit=st.integers(0, 7))
def test_a_flipped_bit(tmp_path_factory, at, bit):
    tier = DiskTier(tmp_path_factory.mktemp("disk"), BYTES, PRINT)
    path = write(tier, 1)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
    if HEADER.size + 4 <= at < HEADER_BYTES:  # filling
        assert read(tier, 1) == payload(1)
    else:
        assert read(tier, 1) is None
        assert not path.exists()


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 4097, HEADER_BYTES + BYTES, 12287])
def test_a_truncated_file(tier, size):
    path = write(tier, 1)
    os.truncate(path, size)
    assert read(tier, 1) is None
    assert not list(tier.scan())
    assert not files(tier)


def test_a_longer_file_is_deleted_at_the_next_start(tier):
    path = write(tier, 1)
    with path.open("ab") as file:
        file.write(bytes(100))
    assert read(tier, 1) in (None, payload(1))
    assert not list(tier.scan())


def test_a_file_under_the_name_of_another(tier):
    path = write(tier, 1)
    other = tier._path(key(2))
    other.parent.mkdir(mode=0o700, exist_ok=True)
    path.rename(other)
    assert read(tier, 1) is None
    assert read(tier, 2) is None
    assert not other.exists()


def test_a_file_of_another_fingerprint(tier, tmp_path):
    """Also of one that shares the folder's 16 digits."""
    alike = PRINT[:8] + bytes(24)
    other = DiskTier(tmp_path, BYTES, alike)
    write(tier, 1)
    assert read(other, 1) is None
    stranger = DiskTier(tmp_path, BYTES, bytes(32))
    assert not list(stranger.scan())
    assert read(stranger, 1) is None


@pytest.mark.parametrize("what", ["symlink", "folder", "dangling"])
def test_something_else_in_place_of_the_file(tier, tmp_path, what):
    path = write(tier, 1)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if what == "symlink" else tmp_path / "nowhere")
    assert read(tier, 1) is None
    if what == "folder":
        with pytest.raises(OSError, match="directory"):
            write(tier, 1)
    else:
        write(tier, 1)
        assert read(tier, 1) == payload(1)
        assert not path.is_symlink()
    assert elsewhere.exists()
    assert not [p for p in files(tier) if p.name.startswith(ASIDE)]


def test_no_two_writers_share_a_file_aside(tier, monkeypatch):
    """Nor do two containers that have one folder and the same process numbers."""
    names = []

    def record(descriptor: int, buffer: memoryview) -> None:
        names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        _write_all(descriptor, buffer)

    monkeypatch.setattr("vllm.kv.tiers.disk._write_all", record)
    for _ in range(2):
        write(tier, 1)
    assert len(set(names)) == 2 and read(tier, 1) == payload(1)


def test_leftovers_of_a_crash_are_deleted(tier):
    path = write(tier, 1)
    aside = path.parent / f"{ASIDE}1-2", tier._folder / f"{ASIDE}probe-1"
    for left in aside:
        left.write_bytes(bytes(tier.file_bytes))
    assert [k for k, _ in tier.scan()] == [key(1)]
    assert all(left.exists() for left in aside), "another engine may be writing them"
    for left in aside:
        os.utime(left, (1.0, 1.0))
    assert [k for k, _ in tier.scan()] == [key(1)]
    assert files(tier) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("after", [0, 1])
def test_a_write_that_fails_leaves_nothing(tier, monkeypatch, code, after):
    calls = []
    plain = os.write

    def fail(descriptor, data):
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(code, "made up")
        return plain(descriptor, data[:4096])

    monkeypatch.setattr("vllm.kv.tiers.disk.os.write", fail)
    with pytest.raises(OSError, match="made up"):
        write(tier, 1)
    monkeypatch.undo()
    assert not files(tier)
    assert read(tier, 1) is None


def test_a_read_that_fails(tier, monkeypatch):
    write(tier, 1)

    def fail(*args):
        raise OSError(errno.EIO, "made up")

    monkeypatch.setattr("vllm.kv.tiers.disk.os.readv", fail)
    with pytest.raises(OSError, match="made up"):
        tier.read(key(1), memoryview(bytearray(BYTES)))


def test_no_more_descriptors(tier, monkeypatch):
    write(tier, 1)

    def fail(*args, **more):
        raise OSError(errno.EMFILE, "made up")

    with monkeypatch.context() as patch:
        patch.setattr("vllm.kv.tiers.disk.os.open", fail)
        assert read(tier, 1) is None
        with pytest.raises(OSError, match="made up"):
            write(tier, 2)
    assert read(tier, 1) == payload(1)
    assert read(tier, 2) is None


KILLED = """
import sys
from pathlib import Path
from tests.kv.test_disk import BYTES, PRINT, key, payload
from vllm.kv.tiers.disk import DiskTier
tier = DiskTier(Path(sys.argv[1]), BYTES, PRINT)
for number in range(1, 60000):
    tier.write(key(number), memoryview(bytearray(payload(number))))
    print(number, flush=True)
"""


def test_killed_while_it_writes(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        told = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split("\n") if line]
    tier = DiskTier(tmp_path, BYTES, PRINT)
    found = {k for k, _ in tier.scan()}
    assert {key(n) for n in told} <= found
    assert all(read(tier, n) == payload(n) for n in told)
    assert read(tier, told[-1] + 1) in (None, payload(told[-1] + 1))
