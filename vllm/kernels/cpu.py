"""The C++ kernels of `csrc/`: fast with AVX2, AVX-512 or AVX-512-BF16, right on any machine.

What they do not cover (float16, odd head sizes, tensors elsewhere) goes to `reference`, here and
nowhere else.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.kernels import reference
from vllm.kernels.ops import DenseBatch

LIBRARY = Path(__file__).parent.parent / "_cpu.so"
DTYPES = (torch.float32, torch.bfloat16)
HEAD_SIZES = range(16, 257, 16)

_ops = torch.ops.vllm_cpu  # resolved on use: the operators exist once `available` has loaded them


@cache
def _load() -> str | None:
    """Load the library once; why it cannot be used, or None."""
    if not LIBRARY.exists():
        return "not built: no C++ compiler, CMake or torch was there at installation"
    try:
        torch.ops.load_library(LIBRARY)
        built = _ops.torch_version()
        _ops.isa()
    except (OSError, RuntimeError, ValueError) as error:
        return f"{LIBRARY.name} cannot be loaded, build it again: {error}"
    if built != torch.__version__.partition("+")[0]:
        return f"built for torch {built}, this is {torch.__version__}: build it again"
    return None


def available(device: str) -> str | None:
    """None when the kernels can run on `device`, else the reason why they cannot."""
    return _load() if device == "cpu" else "they run on the CPU only"


def _covered(*tensors: Tensor) -> bool:
    first = tensors[0].dtype
    return first in DTYPES and all(t.dtype == first and t.is_cpu for t in tensors)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (_ops if _covered(x, weight) else reference).rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (_ops if _covered(x, residual, weight) else reference).add_rms_norm(
        x, residual, weight, eps
    )


def rotary(positions: Tensor, q: Tensor, k: Tensor, cos_sin: Tensor) -> None:
    (_ops if _covered(q, k) else reference).rotary(positions, q, k, cos_sin)


def silu_and_mul(x: Tensor) -> Tensor:
    return (_ops if _covered(x) else reference).silu_and_mul(x)


def write_kv(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    (_ops if kv.is_cpu else reference).write_kv(kv, k, v, slots)


def attention(q: Tensor, kv: Tensor, batch: DenseBatch, scale: float, window: int) -> Tensor:
    if not _covered(q, kv) or kv.shape[4] not in HEAD_SIZES:
        return reference.attention(q, kv, batch, scale, window)
    return _ops.attention(
        q, kv, batch.block_tables, batch.query_start, batch.seq_lens, scale, window
    )


def write_kv_heads(blocks: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    (_ops if blocks.is_cpu else reference).write_kv_heads(blocks, k, v, slots)


def attention_heads(
    q: Tensor, blocks: Tensor, tables: Tensor, query_start: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    covered = _covered(q, blocks) and blocks.shape[3] in HEAD_SIZES
    run = _ops.attention_heads if covered else reference.attention_heads
    return run(q, blocks, tables, query_start, lengths, scale)


def copy_kv(blocks: Tensor, source: Tensor, target: Tensor) -> None:
    (_ops if blocks.is_cpu else reference).copy_kv(blocks, source, target)


@cache
def _widest() -> dict[torch.dtype, int]:
    """The most tokens for which our `linear` is measured to be faster than torch's, by dtype.

    With bf16 instructions torch is as fast from about 128 tokens on, and uses matrix units (AMX)
    where there are any; without them it never is. In float32 it draws level at 512.
    """
    if _ops.isa() != "avx512bf16":
        return {torch.float32: 512, torch.bfloat16: 1 << 31}
    return {torch.float32: 512, torch.bfloat16: 16 if _ops.has_amx() else 128}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _covered(x, weight) and x.dim() == 2 and len(x) <= _widest()[x.dtype]:
        return _ops.linear(x, weight, bias)
    return F.linear(x, weight, bias)
