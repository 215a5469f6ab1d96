"""How long a step takes: models of latency, by name and parameters.

`constant:step=0.01`, `linear:prefill=1e-4,sequence=1e-4,kv=1e-8,step=0.002`,
`roofline:device=h100,count=1,compute=0.5,memory=0.7,step=0.0005`, `table:PATH`. A device that is
not in the list is given by `flops=` and `bandwidth=`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm.config.model import ModelConfig
from vllm.core.plan import StepPlan
from vllm.kv.spec import ITEM_BYTES

Latency = Callable[["Step"], float]

# Measured here, on two cores of an AMD EPYC with AVX-512-BF16: see experiments/engine.
CPU_FLOPS, CPU_BANDWIDTH = 0.37e12, 33e9


@dataclass(frozen=True, slots=True)
class Step:
    """What of a step costs time."""

    prefill_tokens: int  # computed by rows that compute more than one
    sequences: int  # rows that compute one token
    kv_tokens: int  # keys that are read, over all rows
    pairs: int  # query and key pairs

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.sequences

    @classmethod
    def of(cls, plan: StepPlan) -> Step:
        prefill = sequences = kv_tokens = pairs = 0
        if plan.coasting is not None:
            sequences = plan.coasting.sequences
            kv_tokens = pairs = plan.coasting.kv_tokens
        for start, count in zip(plan.starts.tolist(), plan.counts.tolist(), strict=True):
            if count == 1:
                sequences += 1
            else:
                prefill += count
            kv_tokens += start + count
            pairs += count * start + count * (count + 1) // 2
        return cls(prefill, sequences, kv_tokens, pairs)

    def features(self) -> list[float]:
        """What `Linear` weighs: in the order of its fields."""
        return [1.0, float(self.prefill_tokens), float(self.sequences), float(self.kv_tokens)]


@dataclass(frozen=True, slots=True)
class Constant:
    """Every step takes `step` seconds."""

    step: float = 0.01

    def __call__(self, step: Step) -> float:
        return self.step


@dataclass(frozen=True, slots=True)
class Linear:
    """Seconds a step, a prompt token that is computed, a sequence that decodes, and a KV read."""

    step: float = 0.002
    prefill: float = 1e-4
    sequence: float = 1e-4
    kv: float = 0.0

    def __call__(self, step: Step) -> float:
        per_token = self.prefill * step.prefill_tokens + self.sequence * step.sequences
        return self.step + (per_token + self.kv * step.kv_tokens)


@dataclass(frozen=True, slots=True)
class Device:
    """From the makers' data sheets: peaks of dense 16-bit FLOP/s and bytes/s; bytes of memory."""

    flops: float
    bandwidth: float
    memory: float = 0.0  # 0: not told


DEVICES = {
    "a10": Device(125e12, 0.6e12, 24e9),
    "a100": Device(312e12, 2.04e12, 80e9),
    "b200": Device(2250e12, 8.0e12, 180e9),
    "h20": Device(148e12, 4.0e12, 96e9),
    "h100": Device(989e12, 3.35e12, 80e9),
    "h200": Device(989e12, 4.8e12, 141e9),
    "l4": Device(121e12, 0.3e12, 24e9),
    "l40s": Device(362e12, 0.864e12, 48e9),
    "mi300x": Device(1307e12, 5.3e12, 192e9),
    "rtx4090": Device(165e12, 1.01e12, 24e9),
    "t4": Device(65e12, 0.32e12, 16e9),
    "cpu": Device(CPU_FLOPS, CPU_BANDWIDTH),
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """The slower of computing and reading memory, each at a share of the device's peak.

    Williams et al., 2009. Weights are read once a step, KVs once a sequence. Of a mixture a step
    reads the experts that its tokens choose, as if each chose at random.
    """

    device: Device
    weights: float  # parameters that a token passes through
    always: float  # bytes of weights that each step reads
    experts: float  # bytes of weights of all experts
    chosen: float  # share of the experts that a token passes through
    kv_bytes: float  # bytes of one token's KVs
    pair_flops: float  # of one query and key pair, over all layers and heads
    compute: float = 0.5
    memory: float = 0.7
    step: float = 0.0005

    def __call__(self, step: Step) -> float:
        flops = 2 * self.weights * step.tokens + self.pair_flops * step.pairs
        touched = 1 - (1 - self.chosen) ** step.tokens
        data = self.always + self.experts * touched + self.kv_bytes * step.kv_tokens
        computing: float = flops / (self.device.flops * self.compute)
        reading = data / (self.device.bandwidth * self.memory)
        return self.step + max(computing, reading)


@dataclass(frozen=True, slots=True)
class Table:
    """Measured steps: seconds on a grid of computed tokens (rising) and KVs read (rising).

    Between the points it is linear; beyond them the nearest edge is scaled in proportion.
    """

    tokens: np.ndarray  # [N]
    kv_tokens: np.ndarray  # [M]
    seconds: np.ndarray  # [N, M]

    def __call__(self, step: Step) -> float:
        tokens, kv = float(step.tokens), float(step.kv_tokens)
        over = max(1.0, tokens / self.tokens[-1], kv / self.kv_tokens[-1])
        column = [np.interp(kv, self.kv_tokens, line) for line in self.seconds]
        seconds: float = np.interp(tokens, self.tokens, column)
        return float(seconds * over)


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a decoder: those that every token passes through, and its experts'."""

    dense: float
    experts: float = 0.0
    chosen: float = 0.0  # share of the experts that a token passes through

    @classmethod
    def of(cls, hf: dict[str, Any], model: ModelConfig) -> Weights:
        hidden = float(
            hf.get("hidden_size") or hf.get("n_embd") or model.num_heads * model.head_dim
        )
        inner = float(hf.get("intermediate_size") or 4 * hidden)
        matrices = 2 if hf.get("model_type") in ("gpt2", "opt") else 3
        attention = hidden * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
        mlp, head = matrices * hidden * inner, hidden * model.vocab_size
        count = hf.get("num_local_experts") or hf.get("num_experts")
        if not count:
            return cls(model.num_layers * (attention + mlp) + head)
        inner = float(hf.get("moe_intermediate_size") or inner)
        experts = model.num_layers * count * 3 * hidden * inner
        return cls(model.num_layers * attention + head, experts, hf["num_experts_per_tok"] / count)


def roofline(model: ModelConfig, device: Device, **shares: float) -> Roofline:
    item = ITEM_BYTES[model.dtype]
    weights = Weights.of(model.hf, model)
    return Roofline(
        device=device,
        weights=weights.dense + weights.experts * weights.chosen,
        always=weights.dense * item,
        experts=weights.experts * item,
        chosen=weights.chosen,
        kv_bytes=model.num_layers * model.num_kv_heads * 2 * model.head_dim * item,
        pair_flops=4 * model.num_layers * model.num_heads * model.head_dim,
        **shares,
    )


def _on_device(name: str, model: ModelConfig, given: dict[str, float]) -> Roofline:
    """A roofline on a device that is named, or given by its peaks; `count` of them share a step."""
    peaks = given.pop("flops", None), given.pop("bandwidth", None)
    count = given.pop("count", 1.0)
    if name:
        device = DEVICES.get(name.lower())
        if device is None or peaks != (None, None):
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {name!r}")
    elif peaks[0] and peaks[1]:
        device = Device(peaks[0], peaks[1])
    else:
        raise ValueError("a roofline needs device=, or flops= and bandwidth=")
    if count < 1 or any(given.get(share) == 0 for share in ("compute", "memory")):
        raise ValueError("count must be at least 1, compute and memory above 0")
    return roofline(model, Device(device.flops * count, device.bandwidth * count), **given)


def parse(text: str, model: ModelConfig) -> Latency:
    """A model of latency from its name and parameters. Raises ValueError for what is unknown."""
    name, _, rest = text.partition(":")
    if name == "table":
        return read_table(Path(rest))
    try:
        given = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
        device = given.pop("device", "" if "flops" in given or "bandwidth" in given else "h100")
        numbers = {key: float(value) for key, value in given.items()}
    except ValueError:
        raise ValueError(f"cannot read the parameters of {text!r}: name=number, ...") from None
    if any(not np.isfinite(value) or value < 0 for value in numbers.values()):
        raise ValueError(f"the parameters of {text!r} must not be negative")
    made: dict[str, Callable[..., Latency]] = {
        "constant": Constant,
        "linear": Linear,
        "roofline": lambda **numbers: _on_device(device, model, numbers),
    }
    if name not in made:
        raise ValueError(f"latency must be one of {', '.join([*made, 'table'])}, not {name!r}")
    try:
        return made[name](**numbers)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from None


def read_table(path: Path) -> Table:
    """{"tokens": [...], "kv_tokens": [...], "seconds": [[...], ...]} as `calibrate` writes it."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        table = Table(*(np.array(said[k], dtype=float) for k in ("tokens", "kv_tokens", "seconds")))
        if table.seconds.shape != (len(table.tokens), len(table.kv_tokens)):
            raise ValueError("seconds must have a line a token count, a column a KV count")
        rising = all((np.diff(axis) > 0).all() for axis in (table.tokens, table.kv_tokens))
        if not rising or not (table.seconds >= 0).all() or not len(table.tokens):
            raise ValueError("token counts must rise, seconds must not be negative")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read the table {path}: {error}") from error
    return table
