"""Value norms and head biases, around other metrics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.compression.made import observed
from vllm.compression.metrics import make
from vllm.config.compression import CompressionSettings
from vllm.config.head_bias import HeadBias

PLAIN = CompressionSettings(window=8)
NORMED = CompressionSettings(window=8, value_norm=True)


def test_value_norm_weighs_by_what_a_value_adds_to_the_output():
    output = torch.randn(12, 4 * 8, generator=torch.Generator().manual_seed(3))
    o = observed(output=output)
    inner = make("snapkv", PLAIN).score(o)
    want = torch.zeros(2, 40)
    for head in range(2):
        for t in range(40):
            for member in range(2):
                whole = torch.zeros(32)
                at = (head * 2 + member) * 8
                whole[at : at + 8] = o.values[head, t]
                want[head, t] += float((output @ whole).square().sum()) / 2
    torch.testing.assert_close(make("snapkv", NORMED).score(o), (inner + 1e-4) * want.sqrt())


def test_value_norm_notices_other_weights():
    metric = make("snapkv", NORMED)
    first, second = torch.randn(2, 12, 4 * 8, generator=torch.Generator().manual_seed(3)).unbind(0)
    for output in (first, first, second):
        o = observed(output=output)
        assert torch.equal(metric.score(o), make("snapkv", NORMED).score(o))
    assert not torch.equal(metric.score(observed(output=first)), metric.score(o))


def test_value_norm_without_an_output_projection_takes_the_values():
    o = observed()
    want = (make("snapkv", PLAIN).score(o) + 1e-4) * o.values.norm(dim=-1)
    torch.testing.assert_close(make("snapkv", NORMED).score(o), want)


def test_half_of_the_budget_goes_by_the_inner_metric_alone():
    o = observed(gaps=True, keep=10)
    inner = make("snapkv", PLAIN).score(o).masked_fill(o.positions < 0, -1)
    scores = make("snapkv", NORMED).score(o)
    for head in range(2):
        first = set(scores[head].topk(5).indices.tolist())
        assert first == set(inner[head].topk(5).indices.tolist())
        assert float(scores[head].topk(6).values[-1]) < 1e30


def test_wrappers_look_like_what_they_wrap():
    for name in ("kvc", "h2o", "knorm"):
        inner, outer = make(name, PLAIN), make(name, NORMED)
        for field in ("window", "accumulates", "decode", "block"):
            assert getattr(inner, field) == getattr(outer, field)
    o = observed()
    assert torch.equal(make("kvc", PLAIN).observe(o), make("kvc", NORMED).observe(o))


BIAS = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)
STARTS = np.array([0, 10, 25])


def test_head_bias_is_added_by_layer_head_and_position():
    o = observed(gaps=True, layer=1)
    settings = dataclasses.replace(PLAIN, bias=HeadBias(BIAS, STARTS), bias_weight=0.5)
    got = make("snapkv", settings).score(o) - make("snapkv", PLAIN).score(o)
    for head in range(2):
        for t, position in enumerate(o.positions[head].tolist()):
            if position >= 0:
                place = sum(position >= start for start in STARTS) - 1
                assert float(got[head, t]) == pytest.approx(0.5 * BIAS[1, head, place], abs=1e-5)
