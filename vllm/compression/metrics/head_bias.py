"""A wrapper: a bias for each layer, KV head and range of positions, measured beforehand."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from vllm.compression.metrics.observed import Metric, Observed

MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Bias:
    """bias: float32 [L, H, bins]. starts: int64 [bins], ascending: where each bin begins."""

    bias: Tensor
    starts: Tensor


class HeadBias:
    """The inner score plus weight * bias; positions before the first bin get the first bin's."""

    def __init__(self, inner: Metric, bias: Bias, weight: float) -> None:
        self._inner, self._bias, self._weight = inner, bias, weight
        self.window, self.accumulates = inner.window, inner.accumulates
        self.decode, self.block = inner.decode, inner.block

    def observe(self, o: Observed) -> Tensor:
        return self._inner.observe(o)

    def score(self, o: Observed) -> Tensor:
        bins = torch.searchsorted(self._bias.starts, o.positions, right=True) - 1
        bias = self._bias.bias[o.layer].gather(-1, bins.clamp_min(0))
        return self._inner.score(o) + self._weight * bias


def read_head_bias(path: str) -> Bias:
    """From an .npz or .safetensors file with `bias` [L, H, bins] and `pos_bins` [bins].

    Raises ValueError, naming kv_head_bias_path.
    """
    try:
        arrays = _arrays(Path(path))
        bias, starts = arrays["bias"], arrays["pos_bins"]
    except (OSError, SafetensorError, zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"kv_head_bias_path: {path} cannot be read: {error}") from error
    if bias.ndim != 3 or starts.ndim != 1 or len(starts) != bias.shape[2] or not len(starts):
        raise ValueError(
            f"kv_head_bias_path: bias must be [layers, heads, bins] and pos_bins [bins], "
            f"not {list(bias.shape)} and {list(starts.shape)}"
        )
    if not np.isfinite(bias).all():
        raise ValueError("kv_head_bias_path: bias holds numbers that are not finite")
    if starts.dtype.kind not in "iu" or (np.diff(starts) <= 0).any():
        raise ValueError("kv_head_bias_path: pos_bins must be ascending integers")
    return Bias(
        torch.from_numpy(bias.astype(np.float32)), torch.from_numpy(starts.astype(np.int64))
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError("only .npz and .safetensors files are read: others can run code")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
