"""`--kv-head-bias-path`: a bias for each layer, KV head and range of positions."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

MAX_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class HeadBias:
    """bias: float32 [L, H, bins]. starts: int64 [bins], ascending: where each bin begins."""

    bias: np.ndarray
    starts: np.ndarray


def read_head_bias(path: str, layers: int, heads: int) -> HeadBias:
    """From an .npz or .safetensors file with `bias` [L, H, bins] and `pos_bins` [bins].

    Raises ValueError, naming kv_head_bias_path.
    """
    try:
        arrays = _arrays(Path(path))
        bias, starts = arrays["bias"], arrays["pos_bins"]
    except (OSError, SafetensorError, zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"kv_head_bias_path: {path} cannot be read: {error}") from error
    if starts.ndim != 1 or not len(starts) or bias.shape != (layers, heads, len(starts)):
        raise ValueError(
            f"kv_head_bias_path: bias must be [{layers} layers, {heads} heads, bins] and pos_bins "
            f"[bins], not {list(bias.shape)} and {list(starts.shape)}"
        )
    if bias.dtype.kind != "f" or not np.isfinite(bias).all():
        raise ValueError("kv_head_bias_path: bias must hold finite floats")
    if starts.dtype.kind not in "iu" or (np.diff(starts.astype(np.int64)) <= 0).any():
        raise ValueError("kv_head_bias_path: pos_bins must be ascending integers")
    return HeadBias(bias.astype(np.float32), starts.astype(np.int64))


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
