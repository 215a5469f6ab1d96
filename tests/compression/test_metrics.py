"""Metrics against loops over single numbers: values, not only rankings."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.compression import reference
from tests.compression.made import observed, part
from tests.compression.reference import spread
from vllm.compression.metrics import METRICS, make
from vllm.compression.metrics.expected_attention import FUTURE
from vllm.compression.metrics.kvc import KVC
from vllm.config.compression import CompressionSettings
from vllm.core import compression as core

SETTINGS = CompressionSettings(window=8)
BY_REFERENCE = {
    "snapkv": reference.snapkv,
    "tova": reference.tova,
    "knorm": reference.knorm,
    "keydiff": reference.keydiff,
    "rkv": reference.rkv,
}


def close(got, o, want):
    valid = o.positions >= 0
    torch.testing.assert_close(got[valid], spread(o, want)[valid], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("name", BY_REFERENCE)
def test_values(name, group, gaps):
    o = observed(group=group, gaps=gaps, seed=group)
    close(make(name, SETTINGS).score(o), o, BY_REFERENCE[name](o))


@pytest.mark.parametrize("max_pool", [False, True])
@pytest.mark.parametrize("buffer", [0, 3, 10])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_kvc_of_a_window(power, average, buffer, max_pool):
    o = observed(buffer=buffer)
    metric = KVC(window=8, power=power, average=average, max_pool=max_pool)
    want = reference.kvc(o, power=power, average=average, max_pool=max_pool, blocks=[range(8)])
    added = metric.observe(o)
    close(added, o, want)
    if average:
        want = [{p: v / max(1, 39 - p + 1 - buffer) for p, v in head.items()} for head in want]
    close(metric.score(dataclasses.replace(o, running=added)), o, want)


@pytest.mark.parametrize("buffer", [0, 10])
def test_kvc_averages_over_what_is_new(buffer):
    """The window stands for the queries that nobody has observed: here it is all of them."""
    o = observed(queries=8, buffer=buffer, since=32)
    plain, average = KVC(window=8), KVC(window=8, average=True)
    torch.testing.assert_close(average.observe(o), plain.observe(o))
    before = dataclasses.replace(o, since=0)
    assert not torch.equal(average.observe(before), plain.observe(before))


@pytest.mark.parametrize("average", [False, True])
def test_kvc_pools_each_block_of_queries(average):
    o = observed(queries=8)
    metric = KVC(window=8, block=3)
    blocks = [range(3), range(3, 6), range(6, 8)]
    close(
        metric.observe(o), o, reference.kvc(o, power=2, average=False, max_pool=True, blocks=blocks)
    )


@pytest.mark.parametrize("chunks", [[40], [16, 24], [8, 8, 8, 16]])
def test_kvc_of_the_whole_prompt_does_not_depend_on_chunks(chunks):
    """Chunks end where blocks do; before the prompt's end the later KVs do not exist yet."""
    o = observed(queries=40)
    metric = KVC(window=None, block=8)
    blocks = [range(i, i + 8) for i in range(0, 40, 8)]
    running, start = torch.zeros(2, 40), 0
    for count in chunks:
        end = start + count
        chunk = part(o, start, end)
        there = dataclasses.replace(
            chunk,
            read=lambda side, end=end: (o.keys, o.values)[side][:, :end],
            positions=o.positions[:, :end],
        )
        running[:, :end] += metric.observe(there)
        start = end
    close(running, o, reference.kvc(o, power=2, average=False, max_pool=True, blocks=blocks))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(("aggregation", "power"), [("L1-sum", 1), ("L2-avg", 2)])
def test_kvc_adds_decode_queries_unpooled(aggregation, power, gaps):
    o = observed(queries=1, buffer=2, decoding=True, gaps=gaps)
    metric = make("kvc", CompressionSettings(aggregation=aggregation))
    before = torch.rand(o.positions.shape)
    told = [dict.fromkeys(reference.held(o, h), 0.0) for h in range(2)]
    for head in range(2):
        for member in range(2):
            for p, weight in reference.attention(o, head, member, 0).items():
                told[head][p] += weight**power if 39 - p >= 2 else 0.0
    added = metric.observe(o)
    close(added, o, told)
    got = metric.score(dataclasses.replace(o, running=before + added))
    want = before + added
    if aggregation.endswith("avg"):
        want = want / (39 - o.positions + 1 - 2).clamp_min(1)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("aggregation", ["L2-sum", "L1-avg"])
def test_kvc_diff(gaps, aggregation):
    """It observes as kvc does, and weighs what it has observed against redundancy."""
    o = observed(gaps=gaps)
    settings = CompressionSettings(window=8, aggregation=aggregation)
    plain, metric = make("kvc", settings), make("kvc-diff", settings)
    o = dataclasses.replace(o, running=plain.observe(o))
    assert torch.equal(metric.observe(o), o.running)
    inner = [
        {p: float(x) for p, x in zip(at, row, strict=True) if p >= 0}
        for at, row in zip(o.positions.tolist(), plain.score(o), strict=True)
    ]
    close(metric.score(o), o, reference.kvc_diff(o, inner))


def test_what_kvc_does_not_look_at_is_not_read():
    o = observed()
    o = dataclasses.replace(o, running=torch.rand(o.positions.shape), read=None)
    assert torch.equal(KVC(window=8).score(o), o.running)


def test_kvc_sums_over_the_group():
    """Four query heads that agree pay four times what one does: not their mean, not their best."""
    one = observed(group=1)
    four = dataclasses.replace(one, queries=one.queries.repeat_interleave(4, 1))
    metric = KVC(window=8)
    torch.testing.assert_close(metric.observe(four), 4 * metric.observe(one))


def test_kvc_without_decode_metrics():
    assert make("kvc", CompressionSettings()).decode
    assert not make("kvc", CompressionSettings(only_prefill=True)).decode


@pytest.mark.parametrize("gaps", [False, True])
def test_h2o(gaps):
    o = observed(queries=40, gaps=gaps)
    metric = make("h2o", SETTINGS)
    if gaps:  # a query whose KVs are all gone says nothing
        o = part(o, 30, 40)
    close(metric.observe(o), o, reference.h2o(o))
    halves = metric.observe(part(o, 0, 5)) + metric.observe(part(o, 5, len(o.queries)))
    torch.testing.assert_close(halves, metric.observe(o))


def turned(x, angles):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


FREQUENCIES = torch.tensor([1.0, 0.3, 0.1, 0.01])


@pytest.mark.parametrize("gaps", [False, True])
def test_expected_attention(gaps):
    o = observed(
        gaps=gaps, rotate=lambda x, by: turned(x, by[:, None].double() * FREQUENCIES.double())
    )

    def turn(vector, position):
        return turned(vector, position * FREQUENCIES.double())

    close(
        make("expected-attention", SETTINGS).score(o),
        o,
        reference.expected_attention(o, turn, FUTURE),
    )


def test_expected_attention_without_rotary_embedding():
    o = observed()
    close(
        make("expected-attention", SETTINGS).score(o),
        o,
        reference.expected_attention(o, lambda x, _: x, 1),
    )


def test_recency_keeps_the_first_four_and_the_newest():
    o = observed(gaps=True)
    scores = make("recency", SETTINGS).score(o).masked_fill(o.positions < 0, -1)
    best = o.positions[0][scores[0].argsort(descending=True)].tolist()
    held = sorted(reference.held(o, 0))
    sinks = [p for p in held if p < 4]
    assert best[: len(held)] == sinks + [p for p in reversed(held) if p >= 4]


def test_random_is_a_function_of_seed_layer_head_and_position():
    o = observed(kvs=4000)
    metric = make("random", SETTINGS)
    scores = metric.score(o)
    shuffled = torch.randperm(4000, generator=torch.Generator().manual_seed(1))
    again = metric.score(dataclasses.replace(o, positions=o.positions[:, shuffled]))
    assert torch.equal(again, scores[:, shuffled])
    others = [
        scores[1],
        metric.score(dataclasses.replace(o, layer=1))[0],
        make("random", CompressionSettings(seed=1)).score(o)[0],
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([scores[0], other]))[0, 1])) < 0.06
    assert float(scores.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(scores.std()) == pytest.approx(12**-0.5, abs=0.01)
    assert float(scores.min()) >= 0 and float(scores.max()) < 1


@pytest.mark.parametrize("name", METRICS)
def test_storage_order_and_padding_change_nothing(name):
    o = observed(gaps=True, layer=2)
    order = torch.stack([torch.randperm(40), torch.randperm(40)])

    def moved(x):
        at = order if x.dim() == 2 else order[..., None].expand_as(x)
        return x.gather(1, at)

    other = dataclasses.replace(
        o, read=lambda side: moved((o.keys, o.values)[side]), positions=moved(o.positions)
    )
    other.keys[other.positions < 0] = 1e3
    other.values[other.positions < 0] = 1e3
    metric = make(name, SETTINGS)
    if metric.accumulates:
        o.running, other.running = metric.observe(o), metric.observe(other)
    assert o.running is None or not o.running[o.positions < 0].any()
    valid = other.positions >= 0
    torch.testing.assert_close(metric.score(other)[valid], moved(metric.score(o))[valid])


@pytest.mark.parametrize("name", METRICS)
def test_windows_are_what_the_front_end_thinks(name):
    settings = CompressionSettings(window=12)
    assert make(name, settings).window == settings.window_of(name)


def test_the_names_are_those_of_the_core():
    assert tuple(METRICS) == core.METRICS


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="compression_metric must be one of"):
        make("nope", SETTINGS)
