"""The contract between compression and prefix caching, over random histories.

R1 keys start from all that shapes KVs. R2 a hit leaves the queries that a metric must see. R3 what
is computed behind a compression is published for nobody. R4 shared blocks are copied out of, never
written. The worker checks each KV that is read and each slot that is written; with any of the rules
switched off, it must find fault.
"""

from __future__ import annotations

import random

import pytest

from vllm.kv import names as names_module
from vllm.kv.index import BlockId
from vllm.kv.lineage import root
from vllm.kv.manager import KVManager
from vllm.scheduler.compression import Compression

from .compressing import CompressingDrive, CompressingExecutor, params
from .drive import BASES


def history(seed: int) -> None:
    """One head, so that a rule that is off can publish a head block as if it were a block."""
    rng = random.Random(seed)
    size = rng.randint(1, 3)
    blocks = rng.randint(16, 40)
    drive = CompressingDrive(
        heads=1,
        choices=seed,
        blocks=blocks,
        size=size,
        seqs=4,
        budget=rng.choice([8, 40]),
        max_model_len=blocks * size,
    )
    for _ in range(12):
        length = rng.randint(2, min(30, blocks * size - 1))
        wish = params(
            max_cache_tokens=rng.choice([size, 2 * size]), window=rng.choice([0, 2, 5, None])
        )
        drive.add(
            rng.choice(BASES)[:length],
            compression=rng.choice([wish, wish, None]),
            salt=rng.choice([None, "tenant"]),
            max_tokens=rng.choice([2, 12]),
            n=rng.choice([1, 1, 2]),
        )
        for _ in range(rng.randint(0, 6)):
            if drive.scheduler.has_work:
                drive.step()
    drive.run()
    drive.verify()


def test_with_all_rules_nobody_reads_what_is_not_its_own():
    for seed in range(40):
        history(seed)


def no_fingerprint(monkeypatch):
    monkeypatch.setattr(names_module, "root", lambda fingerprint, salt=None: root(b"", None))


def no_window(monkeypatch):
    monkeypatch.setattr(Compression, "readable", lambda self, sequence: len(sequence.dense))


def no_lossy_lineage(monkeypatch):
    """Blocks that were filled behind a compression are published under the keys of their tokens."""
    plain = KVManager.publish

    def publish(self, seq, tokens, computed):
        table = self._heads.tables.get(seq)
        if table is None:
            plain(self, seq, tokens, computed)
            return
        size, ids = self.spec.block_size, table.head_blocks[0, 0]
        lineage = self._names.new(None)
        lineage.extend(tokens, computed // size)
        kept = int(table.lengths[0, 0]) - table.tokens
        for i, key in enumerate(lineage.keys()):
            place = i + kept // size
            if kept % size == 0 and place >= 0 and i * size >= len(tokens) - 4:
                block = BlockId(int(ids[place]))
                if not self._pool.is_published(block):
                    self._pool.publish(block, key)

    monkeypatch.setattr(KVManager, "publish", publish)


def in_place(monkeypatch):
    """What stays is moved to the front of the sequence's own blocks."""
    plain = CompressingExecutor._compress

    def compress(self, order):
        if order.seq not in self.kept:
            held = self.rows[order.seq].blocks[: len(order.head_blocks)]
            order.head_blocks[: len(held)] = held
        return plain(self, order)

    monkeypatch.setattr(CompressingExecutor, "_compress", compress)


@pytest.mark.parametrize(
    ("switch_off", "fault"),
    [
        (no_fingerprint, "a wrong KV is read"),
        (no_window, "R2"),
        (no_lossy_lineage, "a wrong KV is read"),
        (in_place, "R4"),
    ],
)
def test_without_any_of_the_rules_somebody_does(monkeypatch, switch_off, fault):
    switch_off(monkeypatch)
    found = set()
    for seed in range(100):
        try:
            history(seed)
        except AssertionError as error:
            found.add(str(error).split("\n")[0])
        if any(fault in said for said in found):
            return
    raise AssertionError(f"nobody saw that the rule was off, only {found}")
