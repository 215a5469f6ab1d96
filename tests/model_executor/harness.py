"""Drives a model over an arena by hand, and makes small random checkpoints with transformers."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from vllm.kernels import Ops, dense_batch
from vllm.model_executor.forward import Forward
from vllm.model_executor.loader import load_model
from vllm.model_executor.model import Model

BLOCK = 4


@dataclass
class Sequence:
    """Blocks in the order of their tokens, and how many KVs they hold."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


class Driver:
    """A model, an arena full of garbage, and blocks handed out in no order."""

    def __init__(self, model: Model, hf: dict[str, Any], blocks: int = 128) -> None:
        self.model = model
        layers = hf.get("num_hidden_layers") or hf["n_layer"]
        heads = hf.get("num_attention_heads") or hf["n_head"]
        dim = hf.get("head_dim") or (hf.get("hidden_size") or hf["n_embd"]) // heads
        kv_heads = hf.get("num_key_value_heads") or heads
        dtype = next(model.parameters()).dtype
        self.kv = torch.full((blocks, layers, kv_heads, 2, BLOCK, dim), 1e4, dtype=dtype)
        self.free = list(range(blocks))
        random.Random(0).shuffle(self.free)

    def step(self, *work: tuple[Sequence, list[int]]) -> list[Tensor]:
        """One forward pass over new tokens of several sequences; logits [n, V] for each."""
        for sequence, tokens in work:
            while len(sequence.blocks) * BLOCK < sequence.length + len(tokens):
                sequence.blocks.append(self.free.pop())
        starts, counts = [s.length for s, _ in work], [len(tokens) for _, tokens in work]
        positions = [a + i for a, n in zip(starts, counts, strict=True) for i in range(n)]
        batch = dense_batch([s.blocks for s, _ in work], starts, counts, BLOCK)
        tokens = torch.tensor([t for _, new in work for t in new])
        with torch.inference_mode():
            hidden = self.model(tokens, Forward(torch.tensor(positions), self.kv, batch))
            logits = self.model.logits(hidden)
        for (sequence, _), count in zip(work, counts, strict=True):
            sequence.length += count
        return list(logits.split(counts))

    def prefill(self, tokens: list[int], chunk: int | None = None) -> tuple[Sequence, Tensor]:
        """A new sequence and the logits of all its tokens, computed `chunk` at a time."""
        sequence, size = Sequence(), chunk or len(tokens)
        parts = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        return sequence, torch.cat([self.step((sequence, part))[0] for part in parts])

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        sequence, logits = self.prefill(tokens)
        made = [int(logits[-1].argmax())]
        while len(made) < count:
            made.append(int(self.step((sequence, made[-1:]))[0][-1].argmax()))
        return made


@dataclass(frozen=True)
class Case:
    """A checkpoint on disk and the same model in transformers."""

    folder: Path
    hf: dict[str, Any]
    reference: Any
    known: dict[str, list[int]] = field(default_factory=dict)  # greedy answers, slow to make

    def prompt(self, count: int, seed: int = 0) -> list[int]:
        return random.Random(seed).choices(range(self.hf["vocab_size"]), k=count)

    def logits(self, tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            return self.reference(torch.tensor([tokens])).logits[0]

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        question = f"{count} {tokens}"
        if question not in self.known:
            self.known[question] = self._generate(tokens, count)
        return self.known[question]

    def _generate(self, tokens: list[int], count: int) -> list[int]:
        given = torch.tensor([tokens])
        with torch.inference_mode():
            made = self.reference.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
            )
        return made[0, len(tokens) :].tolist()


def make_case(folder: Path, config: PretrainedConfig, **save: Any) -> Case:
    """A random model whose every parameter matters: no zero bias, no norm of ones."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.mul_(0).add_(torch.randn_like(weight), alpha=0.3)
        else:
            weight.data.normal_(0, 1.5 / weight.shape[-1] ** 0.5)
    for name, weight in model.named_parameters():
        if "norm" in name or "ln_" in name:
            weight.data.add_(1.0 if name.endswith("weight") else 0.0)
    model.save_pretrained(folder, **save)
    return Case(folder, json.loads((folder / "config.json").read_text()), model)


def load(case: Case, ops: Ops, dtype: torch.dtype = torch.float32) -> Model:
    return load_model(case.folder, case.hf, ops, dtype)
