"""From a folder to a model with its weights. Only safetensors: no file here can run code."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vllm.kernels import Ops
from vllm.model_executor.model import Model
from vllm.model_executor.models import resolve
from vllm.model_executor.safetensors import LARGEST_HEADER, Entry, read_header, read_tensors

logger = logging.getLogger(__name__)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
QUIET = 256 * 2**20  # loads of fewer bytes show no progress


def load_model(
    folder: Path,
    hf: dict[str, Any],
    ops: Ops,
    dtype: torch.dtype,
    load_format: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """The model of a config.json (`hf`), its weights in `dtype`.

    load_format "auto" and "safetensors" read the folder; "dummy" makes weights up from `seed` and
    touches no file. Raises ValueError for a config that is not supported, for a file that is not
    sound (naming it), and for weights that do not match the config (naming them); FileNotFoundError
    when the folder has no weights that may be read.
    """
    if load_format not in ("auto", "safetensors", "dummy"):
        raise ValueError(f"load_format must be auto, safetensors or dummy, not {load_format!r}")
    if load_format == "dummy":
        model: Model = resolve(hf)(hf, ops, dtype).eval()
        fill_dummy(model, seed)
        return model
    files = {path: read_header(path) for path in weight_files(folder)}
    model = resolve(hf)(hf, ops, dtype).eval()
    started = time.monotonic()
    model.load(_tensors(files, progress))
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    logger.info("Loaded %.3f GB of weights in %.1f s", size / 1e9, time.monotonic() - started)
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a folder's weights: one, or those that the index names.

    Raises FileNotFoundError when there are none, ValueError for an index that is not sound.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _indexed(folder / INDEX)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED)
    if pickled:
        raise FileNotFoundError(
            f"{folder} has weights only as {pickled[0]}: such files can run code when they are "
            "read and are refused; convert them to safetensors"
        )
    raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}")


def fill_dummy(model: Model, seed: int) -> None:
    """Random weights, a function of the seed and the model alone, that keep activations near 1."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            reach = (3 / weight.shape[-1]) ** 0.5  # uniform of variance 1 / inputs
            generator = torch.Generator(weight.device).manual_seed(seed)
            weight.data.uniform_(-reach, reach, generator=generator)
            seed += 1


def _indexed(index: Path) -> list[Path]:
    if index.stat().st_size > LARGEST_HEADER:
        raise ValueError(f"{index}: larger than {LARGEST_HEADER} bytes")
    try:
        given = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index}: {error}") from None
    names = given.get("weight_map") if isinstance(given, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: weight_map is missing")
    for name in names.values():
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: {name!r} is not the plain name of a safetensors file")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for path in files:
        if not path.is_file():
            raise ValueError(f"{index}: {path.name!r} is not in the folder")
    return files


def _tensors(files: dict[Path, dict[str, Entry]], progress: bool) -> Iterator[tuple[str, Tensor]]:
    total = sum(entry.size for entries in files.values() for entry in entries.values())
    quiet = not progress or total < QUIET
    with tqdm(total=total, desc="Loading weights", unit="B", unit_scale=True, disable=quiet) as bar:
        for path, entries in files.items():
            for name, tensor in read_tensors(path, entries):
                yield name, tensor
                bar.update(entries[name].size)
