"""Rotary position embeddings (Su et al. 2021, RoFormer) and the ways to stretch them.

Both spellings of config.json are read: `rope_theta` with `rope_scaling`, and `rope_parameters`.
A stretch maps the plain inverse frequencies to new ones and says how much cos and sin are scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.model_executor.settings import LARGEST, Settings

Rotate = Callable[[Tensor, Tensor], Tensor]  # x [..., T, D], int64 [T] positions further


@dataclass(frozen=True, slots=True)
class Plain:
    """What a stretch starts from."""

    inverse: Tensor  # float32 [R/2]
    theta: float
    max_position: int  # max_position_embeddings of the config
    original: int  # positions that the model was first trained on


@dataclass(frozen=True, slots=True)
class Stretched:
    inverse: Tensor  # float32 [R/2]
    scale: float = 1.0  # of cosines and sines
    positions: int = 0  # rows that the table must have at least


def default(rope: Settings, plain: Plain) -> Stretched:
    return Stretched(plain.inverse)


def linear(rope: Settings, plain: Plain) -> Stretched:
    """Position interpolation (Chen et al. 2023)."""
    factor = rope.number("factor")
    return Stretched(plain.inverse / factor, positions=int(plain.max_position * factor))


def llama3(rope: Settings, plain: Plain) -> Stretched:
    """Llama 3.1: long waves are interpolated, short ones kept, those between blended."""
    factor, low = rope.number("factor"), rope.number("low_freq_factor")
    high = rope.number("high_freq_factor")
    if high <= low:
        rope.refuse("high_freq_factor", f"must exceed low_freq_factor={low}")
    turns = plain.original * plain.inverse / (2 * math.pi)  # in the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return Stretched(plain.inverse * (kept + (1 - kept) / factor))


def yarn(rope: Settings, plain: Plain) -> Stretched:
    """YaRN (Peng et al. 2023): the blend goes by dimension; the softmax is sharpened."""
    factor = rope.number("factor")
    fast, slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
    count = len(plain.inverse)

    def dimension(turns: float) -> float:
        return count * math.log(plain.original / (turns * 2 * math.pi)) / math.log(plain.theta)

    low, high = dimension(fast), dimension(slow)
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    ramp = (torch.arange(count, dtype=torch.float32) - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    scale = rope.number("attention_factor", 1 + 0.1 * math.log(max(factor, 1.0)))
    inverse = plain.inverse * (kept + (1 - kept) / factor)
    return Stretched(inverse, scale, int(plain.original * factor))


def longrope(rope: Settings, plain: Plain) -> Stretched:
    """LongRoPE (Ding et al. 2024): a factor a dimension.

    The short factors hold when the model's whole range fits in the original context, the long ones
    else. The choice is one for the engine, not one a sequence: cached keys must stay comparable.
    """
    ratio = plain.max_position / plain.original
    field = "long_factor" if ratio > 1 else "short_factor"
    factors = rope.get(field)
    numbers = isinstance(factors, list) and all(isinstance(f, int | float) for f in factors)
    if not numbers or len(factors) != len(plain.inverse) or min(factors) <= 0:
        rope.refuse(field, f"must be a list of {len(plain.inverse)} positive numbers")
    ratio = rope.number("factor", max(ratio, 1.0))
    sharper = math.sqrt(1 + math.log(ratio) / math.log(plain.original)) if ratio > 1 else 1.0
    scale = rope.number("attention_factor", sharper)
    return Stretched(plain.inverse / torch.tensor(factors, dtype=torch.float32), scale)


STRETCHES: dict[str, tuple[Callable[[Settings, Plain], Stretched], frozenset[str]]] = {
    "default": (default, frozenset()),
    "linear": (linear, frozenset({"factor"})),
    "llama3": (llama3, frozenset({"factor", "low_freq_factor", "high_freq_factor"})),
    "yarn": (
        yarn,
        frozenset({"factor", "beta_fast", "beta_slow", "attention_factor", "truncate"}),
    ),
    "longrope": (
        longrope,
        frozenset({"factor", "short_factor", "long_factor", "attention_factor"}),
    ),
}
ALIASES = {"su": "longrope"}
COMMON = {
    "type",
    "rope_type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
}


def rope_table(
    cfg: Settings, head_dim: int, theta: float = 10000.0, partial: bool = False
) -> Tensor:
    """The table that `ops.rotary` reads: float32 [max_position, R], R/2 cosines then R/2 sines.

    theta is the family's default. `partial`: the family may turn only the first R < D dimensions.
    Raises ValueError for a rope type, or a field of it, that is not implemented.
    """
    rope = cfg.part("rope_parameters" if cfg.get("rope_parameters") else "rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in STRETCHES:
        raise ValueError(
            f"{rope.name}: rope_type={kind!r} is not implemented; known: {', '.join(STRETCHES)}"
        )
    stretch, fields = STRETCHES[kind]
    for field in rope.hf:
        if rope.get(field) is not None and field not in fields | COMMON:
            rope.refuse(field, f"is not implemented for rope_type {kind!r}")
    part = rope.number("partial_rotary_factor", cfg.number("partial_rotary_factor", 1.0))
    size = int(head_dim * part)
    if part != 1 and not partial:
        raise ValueError(f"{cfg.name}: partial_rotary_factor={part} is not implemented here")
    if part > 1 or size < 2 or size % 2:
        raise ValueError(f"{cfg.name}: partial_rotary_factor={part} of head_dim={head_dim} is odd")

    theta = rope.number("rope_theta", cfg.number("rope_theta", theta))
    last = cfg.count("max_position_embeddings")
    first = cfg.count("original_max_position_embeddings", last)
    first = rope.count("original_max_position_embeddings", first)
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    plain = Plain(1.0 / theta**exponents, theta, last, first)
    made = stretch(rope, plain)
    rows = max(last, made.positions)
    if rows > LARGEST:
        rope.refuse("factor", f"makes {rows} positions of {last}")
    angles = torch.outer(torch.arange(rows, dtype=torch.float32), made.inverse)
    table = torch.empty(rows, size, dtype=torch.float32)
    torch.cos(angles, out=table[:, : size // 2])
    torch.sin(angles, out=table[:, size // 2 :])
    return table.mul_(made.scale)


def rotation(cos_sin: Tensor) -> Rotate:
    """The turn that `cos_sin` gives to each further position, for any number of them.

    The function takes x [..., T, D] and int64 [T] positions, which may be negative, and returns x
    turned by them: a pure rotation, without the factor that some scalings (YaRN) put on it.
    """
    half = cos_sin.shape[1] // 2
    step = torch.atan2(cos_sin[1, half:].double(), cos_sin[1, :half].double())

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        angles = positions.double().unsqueeze(-1) * step
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half : 2 * half]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)

    return rotate
