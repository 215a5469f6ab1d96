"""A disk that lies, is full, breaks, hangs, or an engine that is killed: requests go on with the
right tokens, and the tier comes back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllm.core.clock import monotonic
from vllm.core.request import TierStats
from vllm.entrypoints.llm_engine import LLMEngine
from vllm.kv.mover import Mover
from vllm.kv.tiers.disk import ASIDE
from vllm.sampling_params import SamplingParams

from .test_tiers import SIZE, cached, make, run, tokens

PARAMS = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
LENGTHS = (33, 49, 66, 35)  # a token beyond the last full block, which the answer does not fill


def texts(count: int = 4) -> list[list[int]]:
    rng = random.Random(11)
    return [[rng.randrange(1000) for _ in range(LENGTHS[i % 4])] for i in range(count)]


RECORDS = sum(length // SIZE for length in LENGTHS)


def on_disk(folder: Path, **more) -> LLMEngine:
    """An engine with a disk and no host tier."""
    return make(
        enable_multi_tier_prefix_caching=True,
        swap_space=0,
        disk_cache_dir=str(folder),
        min_load_tokens=0,
        **more,
    )


def mover(engine: LLMEngine) -> Mover:
    return engine.core.scheduler.kv.tiers.mover


def told(engine: LLMEngine) -> TierStats:
    return engine.core.scheduler.kv.tiers.stats()[0]


def files(folder: Path) -> list[Path]:
    """The finished records."""
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(ASIDE)]


def forget_device(engine: LLMEngine) -> None:
    kv = engine.core.scheduler.kv
    assert kv.pool.forget_cached()


def let_time_pass(engine: LLMEngine, seconds: float) -> None:
    """For the breaker."""
    mover(engine)._clock = lambda: monotonic() + seconds


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return tokens(run(make(enable_prefix_caching=False), texts()))


def flip(found: list[Path]) -> None:
    for i, path in enumerate(found):
        data = bytearray(path.read_bytes())
        data[4096 + 37 * i] ^= 1
        path.write_bytes(data)


def truncate(found: list[Path]) -> None:
    for path in found:
        os.truncate(path, path.stat().st_size // 2)


def swap(found: list[Path]) -> None:
    contents = [path.read_bytes() for path in found]
    for path, data in zip(found, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)


def strange(found: list[Path]) -> None:
    """As from another model: the fingerprint in the header is another."""
    for path in found:
        data = path.read_bytes()
        path.write_bytes(data[:44] + bytes(32) + data[76:])


def take_away(found: list[Path]) -> None:
    for path in found:
        path.unlink()


@pytest.mark.parametrize("harm", [flip, truncate, swap, strange, take_away])
def test_files_that_are_not_what_they_should_be(tmp_path, expected, harm: Callable):
    engine = on_disk(tmp_path)
    run(engine, texts())
    assert len(files(tmp_path)) == RECORDS
    harm(files(tmp_path))
    forget_device(engine)
    outputs = run(engine, texts())
    assert tokens(outputs) == expected
    assert cached(outputs) == 0
    gone = harm is take_away
    assert (told(engine).corrupt == 0) == gone
    assert told(engine).failures == 0, "the tier is not to blame"
    forget_device(engine)
    again = run(engine, texts())
    assert tokens(again) == expected
    assert cached(again) == RECORDS * SIZE, "they were written anew"
    engine.core.shutdown()


KILLED = """
import sys
from pathlib import Path
from tests.engine.test_tier_faults import on_disk, run, texts
engine = on_disk(Path(sys.argv[1]))
for number, text in enumerate(texts(200)):
    run(engine, [text])
    print(number, flush=True)
"""


def test_killed_while_it_writes(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(24):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        served = 24 + len(process.stdout.read().split())
    finished = len(files(tmp_path))
    assert finished >= served * RECORDS // 4 - 1
    engine = on_disk(tmp_path)
    outputs = run(engine, texts(served + 1))
    assert cached(outputs) >= 0.95 * finished * SIZE
    assert tokens(outputs) == tokens(run(make(enable_prefix_caching=False), texts(served + 1)))
    engine.core.shutdown()


@contextlib.contextmanager
def small_disk(folder: Path, monkeypatch) -> Iterator[Callable[[], None]]:
    """A file system with room for few records, and how it grows.

    Made up where none can be mounted.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        grow = ["mount", "-o", "remount,size=8m", str(folder)]
        try:
            yield lambda: subprocess.run(grow, check=True) and None
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    plain, room = os.write, [300 << 10]

    def write(descriptor, data):
        if room[0] < len(data):
            raise OSError(errno.ENOSPC, "made up")
        room[0] -= len(data)
        return plain(descriptor, data)

    monkeypatch.setattr("vllm.kv.tiers.disk.os.write", write)
    yield lambda: room.__setitem__(0, 8 << 20)


def test_a_disk_that_is_full(tmp_path, expected, monkeypatch):
    folder = tmp_path / "small"
    with small_disk(folder, monkeypatch) as grow:
        engine = on_disk(folder)
        for _ in range(3):
            assert tokens(run(engine, texts())) == expected
        stored = len(files(folder))
        assert 0 < stored < RECORDS
        assert told(engine).failures and not mover(engine).accepts_store("disk")
        assert not list(folder.rglob(f"{ASIDE}*"))
        grow()
        let_time_pass(engine, 600)
        run(engine, texts())
        assert len(files(folder)) == RECORDS, "it is written to again"
        forget_device(engine)
        again = run(engine, texts())
        assert tokens(again) == expected and cached(again) == RECORDS * SIZE
        engine.core.shutdown()


@contextlib.contextmanager
def broken(monkeypatch) -> Iterator[None]:
    def fail(*args):
        raise OSError(errno.EIO, "made up")

    with monkeypatch.context() as patch:
        patch.setattr("vllm.kv.tiers.disk.os.readv", fail)
        patch.setattr("vllm.kv.tiers.disk.os.write", fail)
        yield


@contextlib.contextmanager
def without_descriptors(monkeypatch) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("fault", [broken, without_descriptors])
def test_a_disk_that_breaks(tmp_path, expected, monkeypatch, fault):
    engine = on_disk(tmp_path)
    run(engine, texts())
    forget_device(engine)
    with fault(monkeypatch):
        for _ in range(2):
            outputs = run(engine, texts())
            assert tokens(outputs) == expected
            assert cached(outputs) == 0
        assert not mover(engine).usable("disk"), "it is left alone now"
        failures = told(engine).failures
        run(engine, texts())
        assert told(engine).failures == failures
    let_time_pass(engine, 600)
    forget_device(engine)
    run(engine, texts())  # what could not be read is written anew
    forget_device(engine)
    again = run(engine, texts())
    assert tokens(again) == expected and cached(again) == RECORDS * SIZE
    engine.core.shutdown()


@pytest.mark.parametrize("call", ["readv", "write"])
def test_a_disk_that_hangs(tmp_path, expected, monkeypatch, call):
    engine = on_disk(tmp_path)
    if call == "readv":
        run(engine, texts())
        forget_device(engine)
    mover(engine).deadline = 0.2
    plain, awake = getattr(os, call), threading.Event()

    def hang(*args):
        assert awake.wait(60)
        return plain(*args)

    monkeypatch.setattr(f"vllm.kv.tiers.disk.os.{call}", hang)
    end = monotonic() + 20
    while not told(engine).deadline_misses:
        serve(engine, expected)
        assert monotonic() < end, "nobody has noticed"
    serve(engine, expected)
    assert not mover(engine).usable("disk") and not mover(engine).accepts_store("disk")
    awake.set()
    while mover(engine).busy:
        engine.core.scheduler.kv.wait(0.01)
        engine.core.scheduler.kv.poll()
    let_time_pass(engine, 600)
    run(engine, texts())
    forget_device(engine)
    again = run(engine, texts())
    assert tokens(again) == expected and cached(again) == RECORDS * SIZE, "it is used again"
    engine.core.shutdown()


def serve(engine: LLMEngine, expected: list[list[int]]) -> None:
    """All requests, while some transfer never ends."""
    done = {}
    for i, text in enumerate(texts()):
        engine.add_request(str(i), text, PARAMS)
    end = monotonic() + 20
    while engine.has_unfinished_requests():
        done |= {int(o.request_id): o.outputs[0].token_ids for o in engine.step() if o.finished}
        engine.core.check()
        assert monotonic() < end, "requests wait for the disk"
    assert [done[i] for i in range(len(expected))] == expected
