"""Value norms and head biases, around other metrics."""

from __future__ import annotations

import dataclasses
import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.compression.made import observed
from vllm.compression.metrics import make
from vllm.compression.metrics.head_bias import read_head_bias
from vllm.config.compression import CompressionSettings

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
                want[head, t] += float((output @ whole).abs().sum()) / 2
    torch.testing.assert_close(make("snapkv", NORMED).score(o), (inner + 1e-4) * want)


def test_value_norm_without_an_output_projection_takes_the_values():
    o = observed()
    want = (make("snapkv", PLAIN).score(o) + 1e-4) * o.values.abs().sum(-1)
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


def saved(tmp_path, kind="npz", **arrays):
    arrays = {"bias": BIAS, "pos_bins": STARTS} | arrays
    path = tmp_path / f"bias.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_head_bias_is_added_by_layer_head_and_position(tmp_path, kind):
    path = saved(tmp_path, kind)
    o = observed(gaps=True, layer=1)
    settings = dataclasses.replace(PLAIN, bias_path=path, bias_weight=0.5)
    got = make("snapkv", settings).score(o) - make("snapkv", PLAIN).score(o)
    for head in range(2):
        for t, position in enumerate(o.positions[head].tolist()):
            if position >= 0:
                place = sum(position >= start for start in STARTS) - 1
                assert float(got[head, t]) == pytest.approx(0.5 * BIAS[1, head, place], abs=1e-5)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"bias": BIAS[0]}, "must be"),
        ({"pos_bins": STARTS[:2]}, "must be"),
        ({"bias": BIAS * np.nan}, "not finite"),
        ({"pos_bins": STARTS[::-1].copy()}, "ascending"),
        ({"pos_bins": STARTS.astype(np.float32)}, "ascending integers"),
        ({"bias": np.array([[[None] * 3]])}, "cannot be read"),
    ],
)
def test_head_bias_files_are_checked(tmp_path, arrays, says):
    with pytest.raises(ValueError, match=rf"kv_head_bias_path.*{says}"):
        read_head_bias(saved(tmp_path, **arrays))


def test_head_bias_files_that_are_none(tmp_path):
    (tmp_path / "bias.npz").write_bytes(b"not a zip file")
    (tmp_path / "bias.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "bias.pt").write_bytes(b"")
    np.savez(tmp_path / "else.npz", other=BIAS)
    for name in ("bias.npz", "bias.safetensors", "bias.pt", "absent.npz", "else.npz"):
        with pytest.raises(ValueError, match=r"kv_head_bias_path.*cannot be read"):
            read_head_bias(str(tmp_path / name))


def test_a_head_bias_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vllm.compression.metrics.head_bias.MAX_BYTES", 100_000)
    array = io.BytesIO()
    np.save(array, np.zeros((10, 10, 1000)))
    with zipfile.ZipFile(tmp_path / "bias.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bias.npy", array.getvalue())
    assert (tmp_path / "bias.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match="unpacks to more"):
        read_head_bias(str(tmp_path / "bias.npz"))
