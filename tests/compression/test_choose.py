"""The choice against a slow twin, and what must hold of it whatever the scores are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vllm.compression.choose import PYRAMID, Protection, Rule, choose
from vllm.core.compression import BUDGET_RULES, CompressionParams

NONE = Protection(from_position=10**9)


def twin(scores, positions, *, block_size, budget, protect, rule):
    """One KV at a time."""
    layers, heads, kvs = scores.shape
    held = {
        (layer, head): [t for t in range(kvs) if positions[layer, head, t] >= 0]
        for layer in range(layers)
        for head in range(heads)
    }
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    if budget >= sum(map(len, held.values())):
        return positions >= 0
    blocks = math.ceil(budget / block_size)
    floor = int(rule.head_floor * blocks / (layers * heads))
    groups = []  # (protected, sure, score, layer, head, number, members)
    for (layer, head), members in held.items():

        def worth(t, layer=layer, head=head):
            p = int(positions[layer, head, t])
            covered = p >= protect.from_position or p < protect.sinks
            covered |= any(a <= p < b for a, b in protect.spans)
            score = float(scores[layer, head, t])
            return covered, (-math.inf if math.isnan(score) else score), -p

        members = sorted(members, key=worth, reverse=True)
        for number, first in enumerate(range(0, len(members), block_size)):
            group = members[first : first + block_size]
            covered, score, _ = worth(group[0])
            covered |= layer in rule.control_layers
            groups.append((covered, number < floor, score, layer, head, number, group))
    place = {
        "global": lambda layer, head: 0,
        "per-layer": lambda layer, head: layer,
        "uniform": lambda layer, head: layer * heads + head,
        "pyramid": lambda layer, head: layer * heads + head,
    }[rule.budget]
    for row, share in enumerate(shares(rule.budget, blocks, layers, heads)):
        mine = [g for g in groups if place(g[3], g[4]) == row]
        mine.sort(key=lambda g: (not g[0], not g[1] or g[0], 0 if g[1] or g[0] else -g[2], g[3:6]))
        spent = 0
        for covered, _, _, layer, head, _, group in mine:
            spent += len(group)
            if covered or spent <= share * block_size:
                keep[layer, head, group] = True
    return keep


def shares(rule, blocks, layers, heads):
    """Blocks of each row: its due in whole blocks, and one more for the last until all are out."""
    if rule == "global":
        return [blocks]
    rows = layers if rule == "per-layer" else layers * heads
    due = [1 / rows] * rows
    if rule == "pyramid" and layers > 1:
        top, low = 2 - 1 / PYRAMID, 1 / PYRAMID
        due = [(top + (low - top) * (row // heads) / (layers - 1)) / rows for row in range(rows)]
    whole = [math.floor(d * blocks + 1e-6) for d in due]
    rest = blocks - sum(whole)
    return [w + (rows - row <= rest) for row, w in enumerate(whole)]


@st.composite
def cases(draw):
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kvs, block = draw(st.integers(1, 14)), draw(st.sampled_from([1, 2, 3, 4, 16]))
    number = st.one_of(
        st.integers(0, 3).map(float),  # many equals
        st.floats(-5, 5, width=32),
        st.sampled_from([math.inf, -math.inf, math.nan]),
    )
    size = layers * heads * kvs
    scores = torch.tensor(draw(st.lists(number, min_size=size, max_size=size)))
    rows = []
    for _ in range(layers * heads):
        row = draw(st.permutations(range(kvs)))
        gone = draw(st.integers(0, kvs - 1))
        rows.append([-1 if i < gone else p for i, p in enumerate(row)])
    span = st.tuples(st.integers(0, kvs), st.integers(0, kvs))
    protect = Protection(
        from_position=draw(st.integers(max(0, kvs - 4), kvs + 1)),
        sinks=draw(st.integers(0, 2)),
        spans=tuple(draw(st.lists(span, max_size=2))),
    )
    rule = Rule(
        budget=draw(st.sampled_from(BUDGET_RULES)),
        head_floor=draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])),
        control_layers=(0,) if draw(st.booleans()) and layers > 1 else (),
    )
    return {
        "scores": scores.view(layers, heads, kvs),
        "positions": torch.tensor(rows).view(layers, heads, kvs),
        "block_size": block,
        "budget": draw(st.integers(0, size + 2)),
        "protect": protect,
        "rule": rule,
    }


def clamped(scores):
    """As floats order them, infinities are only the largest numbers."""
    most = torch.finfo(torch.float32).max
    return torch.nan_to_num(scores, nan=-most, posinf=most, neginf=-most)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_as_the_twin_chooses(case):
    case = case | {"scores": clamped(case["scores"])}
    assert torch.equal(choose(**case), twin(**case))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_what_must_hold(case):
    keep = choose(**case)
    positions, block, rule = case["positions"], case["block_size"], case["rule"]
    valid = positions >= 0
    assert not (keep & ~valid).any()
    kept, had = keep.sum(-1), valid.sum(-1)
    assert ((kept % block == 0) | (kept == had)).all(), "whole blocks, or all that there are"
    covered = case["protect"].covers(positions)
    assert not (covered & ~keep).any(), "what is protected stays"
    for layer in rule.control_layers:
        assert torch.equal(keep[layer], valid[layer])
    needed = (-(-covered.sum(-1) // block) * block).clamp_max(had)
    for layer in rule.control_layers:
        needed[layer] = had[layer]
    limit = -(-case["budget"] // block) * block
    excess = int((kept - needed).clamp_min(0).sum())
    assert int(kept.sum()) <= limit or (kept <= needed).all() or rule.budget != "global"
    assert excess <= limit, "nothing beyond the budget but what is protected"
    if case["budget"] >= int(had.sum()):
        assert torch.equal(keep, valid)


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(0, 10**6))
def test_a_better_score_never_loses(case, which):
    """Raising one kept KV's score keeps it."""
    keep = choose(**case)
    kept = keep.nonzero().tolist()
    if not kept:
        return
    at = tuple(kept[which % len(kept)])
    raised = clamped(case["scores"])
    raised[at] += 1 + abs(float(raised[at]))
    assert choose(**case | {"scores": raised})[at]


@settings(max_examples=200, deadline=None)
@given(cases())
def test_a_larger_budget_keeps_no_fewer(case):
    """Where shares are equal. Unequal ones may lose a block to rounding as the whole grows."""
    assume(case["rule"].budget != "pyramid")
    rule = Rule(case["rule"].budget, 0.0, case["rule"].control_layers)
    less = choose(**case | {"rule": rule})
    more = choose(**case | {"rule": rule, "budget": case["budget"] + case["block_size"]})
    assert int(more.sum()) >= int(less.sum())
    if rule.budget == "global":
        assert not (less & ~more).any()


@settings(max_examples=100, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_padding_changes_nothing(case, rng):
    """A sequence alone, and in a batch that pads it: the same KVs."""
    keep = choose(**case)
    wider = case["scores"].shape[-1] + rng.randint(1, 5)
    scores = torch.full((*case["scores"].shape[:2], wider), 9.0)
    positions = torch.full(scores.shape, -1)
    scores[..., : keep.shape[-1]] = case["scores"]
    positions[..., : keep.shape[-1]] = case["positions"]
    again = choose(**case | {"scores": scores, "positions": positions})
    assert torch.equal(again[..., : keep.shape[-1]], keep)
    assert not again[..., keep.shape[-1] :].any()


def run(scores, budget, rule, block=1, **protect):
    scores = torch.as_tensor(scores, dtype=torch.float32)
    positions = torch.arange(scores.shape[-1]).expand(scores.shape).contiguous()
    return choose(
        scores,
        positions,
        block_size=block,
        budget=budget,
        protect=Protection(**{"from_position": 10**9} | protect),
        rule=rule,
    )


def test_the_global_budget_goes_where_the_scores_are():
    scores = torch.zeros(2, 2, 8)
    scores[1, 0] = 1 + torch.arange(8)
    assert run(scores, 8, Rule()).sum(-1).tolist() == [[0, 0], [8, 0]]
    assert run(scores, 8, Rule(head_floor=0.5)).sum(-1).tolist() == [[1, 1], [5, 1]]
    assert run(scores, 8, Rule("per-layer")).sum(-1).tolist() == [[4, 0], [4, 0]]
    assert run(scores, 8, Rule("uniform")).sum(-1).tolist() == [[2, 2], [2, 2]]
    assert run(scores, 8, Rule("pyramid")).sum(-1).tolist() == [[3, 3], [1, 1]]


def test_even_eviction_takes_the_same_from_every_layer():
    """The original's newer selection forgot --even-layer-evict and --control-layers."""
    scores = torch.rand(4, 2, 16, generator=torch.Generator().manual_seed(0))
    scores[2] += 10
    assert run(scores, 64, Rule("per-layer"), block=4).sum((1, 2)).tolist() == [16] * 4
    controlled = Rule("per-layer", control_layers=(2,))
    assert run(scores, 64, controlled, block=4).sum((1, 2)).tolist() == [16, 16, 32, 16]


def test_equals_are_taken_in_order():
    keep = run(torch.zeros(2, 2, 4), 6, Rule(), block=2)
    assert keep.int().tolist() == [[[1, 1, 1, 1], [1, 1, 0, 0]], [[0] * 4, [0] * 4]]


def test_no_rate_of_one_evicts():
    """The original took one block too many at a rate of 1.0."""
    params = CompressionParams(target_compression_rate=1.0, protected_window_size=5)
    for length in range(1, 40):
        budget = params.budget(length, 4, 16)
        assert run(torch.rand(2, 2, length), budget, Rule("uniform"), block=16).all()


@pytest.mark.parametrize("rule", BUDGET_RULES)
def test_a_long_sequence(rule):
    """Sizes of a real model: whole blocks, and the budget met to within a block."""
    scores = torch.rand(4, 4, 5000, generator=torch.Generator().manual_seed(0))
    keep = run(scores, 16 * 640, Rule(rule), block=16, from_position=4980, sinks=4)
    assert int(keep.sum()) == 16 * 640
    assert (keep.sum(-1) % 16 == 0).all()
    assert keep[..., :4].all() and keep[..., 4980:].all()


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="unknown budget rule 'other'"):
        run(torch.zeros(1, 1, 4), 1, Rule("other"))


# ---- what the budget comes to -----------------------------------------------------------------


def test_budgets():
    rate = CompressionParams(target_compression_rate=0.25, protected_window_size=20)
    assert rate.budget(100, 8, 16) == math.ceil(68 * 8 * 0.25) + 32 * 8
    assert rate.budget(30, 8, 16) == 30 * 8, "all protected"
    most = CompressionParams(max_cache_tokens=20)
    assert most.budget(100, 8, 16) == 32 * 8, "rounded up to blocks"
    assert most.budget(24, 8, 16) == 24 * 8
    assert CompressionParams().budget(100, 8, 16) == 800


@given(
    st.integers(0, 60),
    st.integers(0, 70),
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=3),
)
def test_protected_tokens_are_counted_once(length, window, sinks, spans):
    params = CompressionParams(
        protected_window_size=window, sinks=sinks, protected_spans=tuple(spans)
    )
    covered = Protection.of(params, length).covers(torch.arange(length))
    assert params.protected_tokens(length) == int(covered.sum())
