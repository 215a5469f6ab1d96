"""Several caches of one folder, writers that are killed, damage, collection: a model says what may
be found, and the quota holds at every step.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vllm.kvstore import FileCacheConfig, KVCache
from vllm.kvstore.native import library

CHUNK, NBYTES = 2, 2000
FILE = 4096 + 8192  # header; 2 tokens x 2 tensors x 2,000 bytes, in pages
TEXTS = st.builds(
    lambda base, length: [base] * length, st.sampled_from([1, 2, 3]), st.integers(1, 9)
)


def content(tokens: list[int]) -> np.ndarray:
    """Of each token, what follows from it and from all before it."""
    out = np.empty((len(tokens), 1, 2, NBYTES), np.uint8)
    for i in range(len(tokens)):
        out[i] = np.random.default_rng(tokens[: i + 1]).integers(0, 255, (1, 2, NBYTES), np.uint8)
    return out


class FilesMachine(RuleBasedStateMachine):
    @initialize(quota=st.sampled_from([0, 2, 5, 8]))
    def begin(self, quota: int) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.quota = quota * FILE
        self.caches = [self.open() for _ in range(2)]
        self.may: set[tuple[int, ...]] = set()  # chunks that were stored at some time, by prefix

    def open(self) -> KVCache:
        config = FileCacheConfig(CHUNK, root=self.root, quota=self.quota, gc_interval=0)
        return KVCache(config, NBYTES, threads=2)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for cache in self.caches:
                cache.close()
            shutil.rmtree(self.root)

    def wrote(self, tokens: list[int]) -> None:
        self.may |= {tuple(tokens[:n]) for n in range(CHUNK, len(tokens) + 1, CHUNK)}

    @rule(which=st.integers(0, 1), tokens=TEXTS)
    def update(self, which: int, tokens: list[int]) -> None:
        updated = self.caches[which].update(tokens, content(tokens))
        assert updated <= len(tokens) and updated % CHUNK == 0
        if not self.quota:
            assert updated == len(tokens) // CHUNK * CHUNK
        self.wrote(tokens)

    @rule(which=st.integers(0, 1), tokens=TEXTS)
    def query(self, which: int, tokens: list[int]) -> None:
        found = np.zeros((len(tokens), 1, 2, NBYTES), np.uint8)
        matched = self.caches[which].query(tokens, found)
        assert np.array_equal(found[:matched], content(tokens[:matched]))
        assert matched == 0 or tuple(tokens[:matched]) in self.may

    @rule(tokens=TEXTS, bytes_left=st.integers(0, 3 * FILE))
    def a_writer_dies(self, tokens: list[int], bytes_left: int) -> None:
        """A process is killed when its files would pass a size, in the middle of a write."""
        self.wrote(tokens)
        given = content(tokens)
        child = os.fork()
        if child == 0:
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-5, bytes_left * 1e-7))
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                cache = self.open()
                while True:
                    cache.update(tokens, given)
                    cache.clear()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)

    @rule(at=st.integers(0, 1 << 20), how=st.sampled_from(["flip", "cut", "swap", "gone"]))
    def damage(self, at: int, how: str) -> None:
        files = self.files()
        if not files:
            return
        path = files[at % len(files)]
        data = bytearray(path.read_bytes())
        if not data and how in ("flip", "cut"):
            return  # it was cut to nothing before
        if how == "flip":
            place = at % 4224 if at % 2 else at % (4096 + 8000)
            data[place % len(data)] ^= 1
        elif how == "cut":
            del data[at % len(data) :]
        elif how == "swap":
            data = bytearray(files[(at + 1) % len(files)].read_bytes())
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(data)

    @rule(ttl=st.sampled_from([0.0, 1e6]))
    def collect(self, ttl: float) -> None:
        self.caches[0]._cache.gc(ttl)

    @rule()
    def repair(self) -> None:
        library().root_verify(str(self.root), True)
        assert library().root_verify(str(self.root), False)["damaged"] == 0

    @rule(which=st.integers(0, 1))
    def come_back(self, which: int) -> None:
        self.caches[which].close()
        self.caches[which] = self.open()

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if len(path.name) == 64)

    @invariant()
    def the_quota_holds(self) -> None:
        if hasattr(self, "root") and self.quota:
            left = [p for p in self.root.rglob("*") if p.is_file() and p.name != ".usage"]
            assert sum(path.stat().st_size for path in left) <= self.quota


FilesMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestFiles = FilesMachine.TestCase
