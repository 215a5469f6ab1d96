"""What could be reused, where misses come from, and advice: against slow twins and by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prefixlab.made import BLOCK, chains, seeds
from vllm.prefixlab.advise import ranking, shared_prefixes, sizes
from vllm.prefixlab.curve import lru_hits
from vllm.prefixlab.formats import Options, read
from vllm.prefixlab.formats.metrics import reuse_of_files
from vllm.prefixlab.geometry import geometry
from vllm.prefixlab.misses import CAUSES, misses
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.replay import replay
from vllm.prefixlab.reuse import cdf, cold, reuse_of, summary
from vllm.prefixlab.split import allow, curve_of, hull, quota, split
from vllm.prefixlab.trace import Trace, TraceBuilder, interleaved
from vllm.prefixlab.view import SEMANTICS, view


def requests(trace: Trace) -> list[list[int]]:
    return [trace.ids[a:b].tolist() for a, b in itertools.pairwise(trace.starts)]


@pytest.mark.parametrize("semantics", SEMANTICS)
@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_reuse_against_sets(semantics: str, seed: int) -> None:
    seen = view(chains(seed, 40), semantics)
    reuse = reuse_of(seen)
    known: dict[int, float] = {}
    hits: dict[int, int] = {}
    tokens, gaps, new = [], [], []
    for r, ids in enumerate(requests(seen.trace)):
        size, length = seen.trace.block_size, int(seen.trace.input_len[r])
        reused = 0
        for depth, i in enumerate(ids):
            new.append(i not in known)
            may = semantics != "engine" or depth < (length - 1) // size
            if i in known:
                gaps.append(float(seen.trace.arrival[r]) - known[i])
                if may:
                    reused += min(size, length - depth * size)
                    hits[i] = hits.get(i, 0) + 1
        known |= dict.fromkeys(ids, float(seen.trace.arrival[r]))
        tokens.append(reused)
    assert cold(seen).tolist() == new
    assert reuse.reused_tokens.tolist() == tokens
    assert reuse.hits_per_block.tolist() == [hits.get(i, 0) for i in range(seen.trace.universe)]
    assert sorted(reuse.reuse_gap.tolist()) == pytest.approx(sorted(gaps))
    assert int(reuse.hits_per_block.sum()) == lru_hits(seen)[-1]


def test_summaries_by_hand() -> None:
    told = summary(np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert told["count"] == 5 and told["mean"] == told["median"] == 2.0
    assert (told["min"], told["max"], told["above_zero"]) == (0.0, 4.0, 0.8)
    assert summary(np.zeros(0)) == {"count": 0}


@given(values=st.lists(st.integers(0, 30), max_size=300), points=st.integers(2, 40))
@settings(max_examples=60)
def test_cdfs_tell_true_points(values: list[int], points: int) -> None:
    found = cdf(np.array(values, float), points)
    assert len(found) <= max(points, 1)
    for value, share in found:
        assert share == pytest.approx(sum(v <= value for v in values) / len(values))
    if values:
        assert found[-1] == (max(values), 1.0)


class Twin:
    """Where each token of each prompt goes, told one request after the other."""

    def __init__(self, trace: Trace, hits: list[list[int]]) -> None:
        self.tokens = dict.fromkeys(CAUSES, 0)
        self.diverged: list[int] = []
        size, known, children = trace.block_size, set[int](), dict[int, set[int]]()
        for r, ids in enumerate(requests(trace)):
            length = int(trace.input_len[r])
            new = next((d for d, i in enumerate(ids) if i not in known), None)
            if new is not None:
                kind = "cold"
                if new > 0:
                    kind = "diverged" if children.get(ids[new - 1]) else "continued"
                if kind == "diverged":
                    self.diverged.append(new * size)
            for depth, i in enumerate(ids):
                if hits[r][depth]:
                    cause = "hit"
                elif i not in known:
                    cause = kind
                elif depth == (length - 1) // size and (depth == 0 or hits[r][depth - 1]):
                    cause = "last token"
                else:
                    cause = "evicted"
                self.tokens[cause] += size
            self.tokens["partial tail"] += length % size
            known.update(ids)
            for parent, child in itertools.pairwise(ids):
                children.setdefault(parent, set()).add(child)


@pytest.mark.parametrize("policy", ["lru", "fifo"])
@given(seed=seeds, capacity=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_misses_are_what_happened(policy: str, seed: int, capacity: int) -> None:
    seen = view(chains(seed, 40), "engine")
    outcome = replay(seen, policy, capacity)
    rows, diverged = misses(outcome)
    starts = seen.trace.starts[1:-1]
    twin = Twin(seen.trace, [part.tolist() for part in np.split(outcome.hits, starts)])
    assert {row["cause"]: row["tokens"] for row in rows} == twin.tokens
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert diverged.tolist() == twin.diverged


def test_misses_by_hand() -> None:
    builder = TraceBuilder(4)
    builder.add([1, 2], 8)  # cold
    builder.add([1, 2, 3, 4], 14)  # 1, 2 hit; 3 continues; 2 tokens of a tail
    builder.add([1, 2, 5], 12)  # diverges at token 8
    builder.add([1, 2], 8)  # 2 has the last token
    rows, diverged = misses(replay(view(builder.build(), "engine"), "lru", 100))
    told = {row["cause"]: row["tokens"] for row in rows}
    assert told == {
        "hit": 8 + 8 + 4,
        "evicted": 0,
        "cold": 8,
        "diverged": 4,
        "continued": 4,
        "last token": 4,
        "partial tail": 2,
    }
    assert diverged.tolist() == [8]
    with pytest.raises(ValueError, match="semantics"):
        misses(replay(view(builder.build(), "flat"), "lru", 3))


@given(seed=seeds, share=st.floats(0.05, 1.0))
@settings(max_examples=15, deadline=None)
def test_sizes_are_the_least(seed: int, share: float) -> None:
    seen = view(chains(seed, 40), "engine")
    (row,) = sizes(seen, geometry("llama-3-8b"), [share])
    wanted = share * int(lru_hits(seen)[-1])
    for policy in ("lru", "optimal"):
        capacity = row[f"{policy}_capacity"]
        name = OPTIMAL if policy == "optimal" else policy
        assert replay(seen, name, capacity).hits.sum() >= wanted - 1e-9
        assert capacity == 1 or replay(seen, name, capacity - 1).hits.sum() < wanted
        assert row[f"{policy}_gib"] == capacity * BLOCK * 131072 / 2**30


def test_a_sure_lead_and_an_unsure_one() -> None:
    seen = view(chains(5, 400), "engine")
    outcomes = [replay(seen, policy, 40) for policy in ("fifo", OPTIMAL, "lru")]
    rows = ranking(outcomes)
    assert rows[0]["policy"] == OPTIMAL
    for row in rows:
        assert row["low"] <= row["token_hit_rate"] <= row["high"]
    assert rows[0]["lead_low"] > 0 and "lead" not in rows[-1]
    assert rows == ranking(outcomes), "the same seed draws the same"
    twice = ranking([outcomes[0], outcomes[0]])
    assert twice[0]["lead_low"] == twice[0]["lead_high"] == 0


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Each request hits all of one block or nothing, by chance: the true rate is 0.3."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        builder = TraceBuilder(4)
        builder.add([0], 4)
        for i in range(300):
            builder.add([0 if rng.random() < 0.3 else i + 1], 4)
        outcome = replay(view(builder.build(), "prefix"), "lru", 1000)
        (row,) = ranking([outcome], seed)
        held += row["low"] <= 0.3 <= row["high"]
    assert held >= 51


@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_shared_prefixes_against_a_count(seed: int) -> None:
    seen = view(chains(seed, 40), "prefix")
    uses: dict[tuple[int, ...], int] = {}
    for ids in requests(seen.trace):
        for end in range(1, len(ids) + 1):
            uses[tuple(ids[:end])] = uses.get(tuple(ids[:end]), 0) + 1
    ends = {
        (len(path) * BLOCK, count)
        for path, count in uses.items()
        if count > 1
        and all(len(p) != len(path) + 1 or p[:-1] != path or c < count for p, c in uses.items())
    }
    told = shared_prefixes(seen, 10**6)
    assert {(row["tokens"], row["requests"]) for row in told} == ends
    saved = [row["shared_tokens"] for row in told]
    assert saved == sorted(saved, reverse=True)


def two_workloads(seed: int) -> Trace:
    parts = [chains(seed, 60, roots=2), chains(seed + 1, 60, roots=9)]
    named = []
    for name, part in zip(("a", "b"), parts, strict=True):
        builder = TraceBuilder(BLOCK)
        for r, ids in enumerate(requests(part)):
            builder.add(ids, int(part.input_len[r]), 0, float(r), workload=name)
        named.append(builder.build())
    return interleaved(named)


@given(seed=seeds, capacity=st.integers(1, 80))
@settings(max_examples=15, deadline=None)
def test_a_split_is_nearly_the_best_of_all(seed: int, capacity: int) -> None:
    """On hulls the split has all the hits that any split has; on the steps it is one short."""
    seen = view(two_workloads(seed), "prefix")
    curves = [curve_of(seen, seen.trace.workload == w) for w in (0, 1)]
    hulls = [np.interp(np.arange(curve.size), *zip(*hull(curve), strict=True)) for curve in curves]
    for curve, above in zip(curves, hulls, strict=True):
        assert (above >= curve - 1e-9).all()

    def total(of: list[np.ndarray], first: int, second: int) -> float:
        return sum(float(c[min(n, c.size - 1)]) for c, n in zip(of, (first, second), strict=True))

    parts = split(seen, capacity)
    names = seen.trace.workloads
    given_to = parts[names[0]], parts[names[1]]
    assert sum(given_to) <= capacity
    best = max(total(hulls, first, capacity - first) for first in range(capacity + 1))
    assert total(hulls, *given_to) == pytest.approx(best)


def test_quota_and_allow_list_by_the_curves() -> None:
    builder = TraceBuilder(BLOCK)
    for i in range(200):
        builder.add([i % 20], BLOCK, 0, float(i), workload="again")
        builder.add([1000 + i], BLOCK, 0, float(i), workload="once")
    seen = view(builder.build(), "prefix")
    assert split(seen, 50) == {"again": 20, "once": 0}
    assert quota(seen, 50) == "quota:again=20"
    assert allow(seen) == "allow:again"
    shared = replay(seen, "lru", 30).hits.sum()
    for policy in (quota(seen, 30), allow(seen)):
        assert replay(seen, policy, 30).hits.sum() == 180 > shared
    builder.add([5000], BLOCK, 0, 500.0, workload="a,b")
    builder.add([5000], BLOCK, 0, 500.0, workload="a,b")
    for make in (lambda s: quota(s, 50), allow):
        with pytest.raises(ValueError, match="comma"):
            make(view(builder.build(), "prefix"))


def test_interleaved_streams_take_turns() -> None:
    stream = two_workloads(3)
    names = [stream.workloads[w] for w in stream.workload[:6]]
    assert names == ["a", "b"] * 3
    assert stream.arrival[:4].tolist() == [0, 1, 2, 3]


def write_metrics(folder: Path, trace: Trace) -> Path:
    """The trace as an engine's prefix metrics, whose blocks are full ones."""
    full = view(trace, "engine").trace
    rows, names = [], {}
    for r, ids in enumerate(requests(full)):
        kind = trace.workloads[trace.workload[r]]
        total = int(trace.input_len[r])
        rows.append(
            {
                "request_id": f"r{r}",
                "mode": "multi",
                "total_tokens": total,
                "reused_tokens": 0,
                "workload": kind,
                "reuse_fraction": 0.0,
            }
        )
        parent = None
        for depth, i in enumerate(ids):
            block = names.setdefault(
                i, {"block_key": f"{i:064x}", "depth": depth, "parent": parent, "use_times": []}
            )
            block["use_times"].append(float(trace.arrival[r]))
            parent = block["block_key"]
    for block in names.values():
        block["hits"] = len(block["use_times"]) - 1
        block["reuse_gaps"] = np.diff(block["use_times"]).tolist()
    for what, found in (("requests", rows), ("blocks", names.values())):
        path = folder / f"run_{what}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder / "run"


@given(seed=seeds, together=st.booleans())
@settings(max_examples=15, deadline=None)
def test_prefix_metrics_are_the_requests_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, together: bool
) -> None:
    trace = chains(seed, 30)
    if together:  # several requests start at one moment
        trace.arrival[:] = np.floor(trace.arrival / 30)
    prefix = write_metrics(tmp_path_factory.mktemp("metrics"), trace)
    again = read(prefix)
    again.check()
    full = view(trace, "engine").trace
    told = sorted((float(full.arrival[r]), ids) for r, ids in enumerate(requests(full)) if ids)
    names = sorted(set(itertools.chain(*requests(full))))
    assert again.block_size == BLOCK or sum(map(len, requests(full))) < 20
    if again.block_size == BLOCK:
        found = view(again, "engine").trace
        mine = sorted((float(found.arrival[r]), len(ids)) for r, ids in enumerate(requests(found)))
        assert mine == sorted((time, len(ids)) for time, ids in told)
        assert found.universe == len(names)
        assert lru_hits(view(again, "engine"))[-1] > 0 or lru_hits(view(trace, "engine"))[-1] == 0
        if not together:
            kinds = [trace.workloads[trace.workload[r]] for r, i in enumerate(requests(full)) if i]
            assert [again.workloads[w] for w in again.workload] == kinds
    reuse, faults = reuse_of_files(prefix)
    assert not faults and reuse.total_tokens.tolist() == trace.input_len.tolist()
    assert sorted(reuse.hits_per_block) == sorted(np.bincount(full.ids) - 1)


def test_bad_rows_of_prefix_metrics_are_told(tmp_path: Path) -> None:
    prefix = write_metrics(tmp_path, chains(1, 30))
    with open(tmp_path / "run_blocks.jsonl", "a") as file:
        file.write('{"block_key": 3}\n')
    trace = read(prefix)
    assert trace.bad_count == 1 and trace.bad[0].why.startswith("run_blocks.jsonl: ")
    _, faults = reuse_of_files(prefix)
    assert len(faults) == 1


def test_the_original_studys_files_are_single_accesses(tmp_path: Path) -> None:
    rows = [
        {"block_key": [1, 2], "hits": 1, "use_times": [0.5, 2.0], "reuse_gaps": [1.5]},
        {"block_key": [3], "hits": 0, "use_times": [1.0], "reuse_gaps": []},
    ]
    (tmp_path / "p_blocks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = read(tmp_path / "p", options=Options(block_size=2))
    assert trace.ids.tolist() == [0, 1, 0]
    assert trace.arrival.tolist() == [0.5, 1.0, 2.0]
