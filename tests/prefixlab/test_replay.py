"""What counts as a hit, and that the engine evicts what the laboratory says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prefixlab.made import BLOCK, chains, seeds
from vllm.core.retention import CacheHints
from vllm.kv.events import Event, Events
from vllm.kv.evict import POLICIES
from vllm.kv.lineage import Key, Lineage, root
from vllm.kv.manager import KVManager
from vllm.kv.spec import KVSpec
from vllm.prefixlab.formats import read
from vllm.prefixlab.geometry import geometry
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.replay import drive, known, policy_for, replay
from vllm.prefixlab.trace import Trace, TraceBuilder
from vllm.prefixlab.view import groups, view, warm

SPECS = [*POLICIES, "allow:chat", "quota:chat=2,qa=1", "ttl:chat=30,*=5"]


class Twin:
    """The definition of prefix semantics for LRU, with a list."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.stack: list[int] = []  # the newest use last

    def request(self, ids: list[int]) -> int:
        run = 0
        while run < len(ids) and ids[run] in self.stack:
            run += 1
        for block in reversed(ids[: self.capacity]):
            if block in self.stack:
                self.stack.remove(block)
            self.stack.append(block)
        del self.stack[: max(0, len(self.stack) - self.capacity)]
        return run


@given(seed=seeds, capacity=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_prefix_lru_is_its_definition(seed: int, capacity: int) -> None:
    trace = chains(seed, 50)
    hits = replay(view(trace, "prefix"), "lru", capacity).hits
    twin = Twin(capacity)
    for r in range(trace.requests):
        first, end = trace.starts[r], trace.starts[r + 1]
        run = twin.request(trace.ids[first:end].tolist())
        assert hits[first:end].tolist() == [1] * run + [0] * (end - first - run)


def test_engine_semantics_by_hand() -> None:
    """Partial blocks are never cached, and the block with the last token is computed again."""
    builder = TraceBuilder(4)
    builder.add([1, 2], 8)  # two full blocks
    builder.add([1, 2], 8)  # its last token lies in block 2: only block 1 counts
    builder.add([1, 2, 3], 9)  # a third block of one token: 1 and 2 hit
    builder.add([1, 2, 3], 9)  # 3 was not full
    seen = view(builder.build(), "engine")
    assert seen.trace.accesses == 8
    outcome = replay(seen, "lru", 10)
    assert outcome.hits.tolist() == [0, 0, 1, 0, 1, 1, 1, 1]
    assert outcome.per_request().tolist() == [0, 4, 8, 8]
    row = outcome.row()
    assert row["hits"] == 5 and row["hit_rate"] == 5 / 8
    assert row["token_hit_rate"] == 20 / 34


def test_flat_hits_do_not_need_what_comes_before() -> None:
    builder = TraceBuilder(4)
    builder.add([1, 2, 3], 12)
    builder.add([1, 2, 3], 12)
    trace = builder.build()
    assert replay(view(trace, "flat"), "fifo", 2).hits.tolist() == [0, 0, 0, 0, 0, 0]
    assert replay(view(trace, "prefix"), "fifo", 2).hits.tolist() == [0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("policy", SPECS)
@given(seed=seeds, capacity=st.integers(1, 30))
@settings(max_examples=8, deadline=None)
def test_what_is_resident_stays_closed(policy: str, seed: int, capacity: int) -> None:
    """So the blocks of a request that are resident are its leading ones, under every policy."""
    trace = chains(seed, 40)
    seen = view(trace, "prefix")
    it = policy_for(seen, policy)
    gone = iter(drive(seen, it, capacity, np.zeros(trace.accesses, np.uint8)))
    it.check()
    assert len(it) <= capacity
    code_of = {key: code for code, key in enumerate(seen.keys)}
    left = {code_of[key] for key in it.victims(1e9)}
    for r in range(trace.requests):
        ids = trace.ids[trace.starts[r] : trace.starts[r + 1]].tolist()
        resident = [i in left for i in ids]
        assert resident == sorted(resident, reverse=True)
    assert all(0 <= i < trace.universe for i in gone)


def in_the_engine(
    trace: Trace, policy: str, capacity: int
) -> tuple[list[int], list[int], dict[int, Key]]:
    """The trace through the engine's cache manager: (evicted ids, cached blocks a request, keys).

    A request has its prompt's blocks while it runs, one behind the other. The prompt's last block,
    which is not full, is what the engine needs one more for.
    """
    kv = KVManager(KVSpec(1, 1, 8, BLOCK, "float32"), capacity + 1, b"lab", policy=policy)
    gone: list[Key] = []
    kv.pool.on_evict = gone.extend
    code_of: dict[Key, int] = {}
    cached = []
    for r in range(trace.requests):
        ids = trace.ids[trace.starts[r] : trace.starts[r + 1]].tolist()
        tokens = [i for code in ids for i in [code] * BLOCK] + [10**6]
        lineage = Lineage(root(b"lab"), BLOCK)
        lineage.extend(tokens, len(ids))
        code_of.update(zip(lineage.keys(), ids, strict=True))
        kv.uses.now = float(trace.arrival[r])
        hints = CacheHints(
            workload=trace.workloads[trace.workload[r]], session=str(trace.session[r])
        )
        found = kv.admit(r, tokens, hints=hints)
        assert found is not None
        cached.append(found // BLOCK)
        kv.publish(r, tokens, len(tokens))
        kv.release(r)
        kv.check()
    return [code_of[key] for key in gone], cached, {code: key for key, code in code_of.items()}


@pytest.mark.parametrize("policy", SPECS)
def test_the_engine_evicts_the_same_blocks_in_the_same_order(policy: str) -> None:
    evicted = 0
    for seed in range(4):
        made = chains(seed, 120)
        builder = TraceBuilder(BLOCK)
        for r in range(made.requests):  # a partial block behind whole ones
            full = int(made.input_len[r]) // BLOCK
            builder.add(
                made.ids[made.starts[r] : made.starts[r] + full].tolist(),
                full * BLOCK + 1,
                0,
                float(made.arrival[r]),
                session=int(made.session[r]),
                workload=made.workloads[made.workload[r]],
            )
        trace = builder.build()
        seen = view(trace, "engine")
        for capacity in (17, 40):
            there, cached, keys = in_the_engine(seen.trace, policy, capacity)
            # W-TinyLFU counts uses in a sketch, so by what the keys are.
            vars(seen)["keys"] = [keys[code] for code in range(seen.trace.universe)]
            hits = np.zeros(seen.trace.accesses, np.uint8)
            gone = drive(seen, policy_for(seen, policy), capacity, hits)
            assert gone == there
            runs = np.bincount(seen.trace.request, weights=hits, minlength=trace.requests)
            assert runs.astype(int).tolist() == cached
            evicted += len(gone)
    assert evicted > 1000


def test_what_the_engine_publishes_is_read_as_the_requests_that_computed(tmp_path: Path) -> None:
    """Its KV events, a batch a request, as JSON lines: chains of all who had something to store."""
    trace = view(chains(4, 60), "engine").trace
    kv = KVManager(KVSpec(1, 1, 8, BLOCK, "float32"), trace.universe + 9, b"lab", policy="lru")
    batches: list[list[Event]] = []

    class Kept:
        def publish(self, events: list[Event]) -> None:
            batches.append(events)

    events = Events(BLOCK, Kept())  # type: ignore[arg-type]
    kv.tell(events)
    told, known = [], set[int]()
    for r in range(trace.requests):
        ids = trace.ids[trace.starts[r] : trace.starts[r + 1]].tolist()
        tokens = [i for code in ids for i in [code] * BLOCK] + [10**6]
        assert kv.admit(r, tokens) is not None
        kv.publish(r, tokens, len(tokens))
        kv.release(r)
        events.flush()
        if not known.issuperset(ids):
            told.append(ids)
        known.update(ids)
    path = tmp_path / "events.jsonl"
    lines = (msgspec.json.encode([float(t), batch]) + b"\n" for t, batch in enumerate(batches))
    path.write_bytes(b"".join(lines))
    found = read(path)
    assert found.bad_count == 0 and found.block_size == BLOCK
    parts = np.split(found.ids, found.starts[1:-1])
    names: dict[int, int] = {}
    assert len(parts) == len(told)
    for mine, theirs in zip(parts, told, strict=True):
        assert [
            names.setdefault(a, b) for a, b in zip(mine.tolist(), theirs, strict=True)
        ] == theirs


def test_groups_and_warm_up_share_out_the_whole() -> None:
    trace = chains(1, 80)
    outcome = replay(view(trace, "prefix"), "lru", 25)
    for by in ("workload", "session", "turn"):
        parts = groups(trace, by)
        rows = [outcome.row(mask) for mask in parts.values()]
        for name in ("requests", "accesses", "hits"):
            assert sum(row[name] for row in rows) == outcome.row()[name]
    builder = TraceBuilder(4)
    for i in range(100):
        builder.add([i], 4, session=i % 70 if i % 2 else None)
    many = groups(builder.build(), "session")
    assert len(many) == 35 + 1 and sum(mask.sum() for mask in many.values()) == 100
    late = warm(trace, 0.25)
    assert late.sum() == 60
    assert outcome.row(late)["hits"] == outcome.hits[late[trace.request]].sum()
    with pytest.raises(ValueError, match="warmup"):
        warm(trace, 1.0)
    with pytest.raises(ValueError, match="by"):
        groups(trace, "colour")


def test_saved_flops_by_hand() -> None:
    model = geometry("llama-3-8b")
    assert model.kv_bytes == 32 * 2 * 8 * 128 * 2
    assert model.gib(1024, 16) == 1024 * 16 * 131072 / 2**30
    assert 7.4e9 < model.parameters < 7.6e9  # without the embedding, whose rows are looked up
    builder = TraceBuilder(4)
    builder.add([1, 2], 8)
    builder.add([1, 2], 8)
    outcome = replay(view(builder.build(), "engine"), "lru", 10)
    part, whole = (2 * model.parameters * n + 4 * 32 * 4096 * n * (n + 1) / 2 for n in (4, 8))
    assert outcome.row(None, model)["flop_hit_rate"] == pytest.approx(part / (2 * whole))


def test_bad_names_and_sizes_are_told() -> None:
    seen = view(chains(0, 3), "prefix")
    with pytest.raises(ValueError, match="'mru' is not one of"):
        replay(seen, "mru", 3)
    with pytest.raises(ValueError, match="capacity"):
        replay(seen, "lru", 0)
    with pytest.raises(ValueError, match="takes no settings"):
        known(["lru:3"])
    with pytest.raises(ValueError, match="semantics"):
        view(chains(0, 3), "round")
    with pytest.raises(ValueError, match="model: 'gpt-9'"):
        geometry("gpt-9")
    known(["lru", OPTIMAL, "quota:chat=0.5"])
