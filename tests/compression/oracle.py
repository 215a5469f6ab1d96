"""What a compressed sequence must compute: a dense run with masks, layer by layer, head by head."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from compression.engines import Event
from vllm import kernels
from vllm.kernels import dense_batch
from vllm.model_executor.forward import Forward
from vllm.model_executor.loader import load_model

BLOCK = 8


def oracle(folder: Path, tokens: list[int], events: list[Event]) -> Tensor:
    """Logprobs float32 [len(tokens), V] of a sequence whose compressions these were.

    From token `event.tokens` on, a query sees of the KVs before it only those that were kept.
    """
    hf = json.loads((folder / "config.json").read_text())
    ops, count, layer = kernels.load("cpu", "reference"), len(tokens), -1
    blocks = -(-count // BLOCK)
    shape = (hf["num_hidden_layers"], hf["num_key_value_heads"])

    visible = torch.ones(*shape, count, count, dtype=torch.bool).tril()
    for event in sorted(events, key=lambda e: e.tokens):
        stays = torch.zeros(*shape, count + 1, dtype=torch.bool)
        stays.scatter_(-1, torch.where(event.kept >= 0, event.kept, count), True)
        stays = stays[..., :count].clone()
        stays[..., event.tokens :] = True
        visible[:, :, event.tokens :] &= stays.unsqueeze(2)

    def attention(q, kv, batch, scale, window):
        nonlocal layer
        layer += 1
        heads, dim = kv.shape[1], kv.shape[4]
        keys, values = kv.permute(1, 2, 0, 3, 4).reshape(heads, 2, -1, dim)[:, :, :count].unbind(1)
        queries = q.view(count, heads, -1, dim).permute(1, 2, 0, 3)
        scores = queries @ keys.transpose(1, 2).unsqueeze(1) * scale
        hidden = ~visible[layer].unsqueeze(1)
        mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values.unsqueeze(1)
        return mixed.permute(2, 0, 1, 3).contiguous().view(q.shape)

    model = load_model(folder, hf, dataclasses.replace(ops, attention=attention), torch.float32)
    arena = torch.zeros(blocks, *shape, 2, BLOCK, hf["head_dim"])
    batch = dense_batch([list(range(blocks))], [0], [count], BLOCK)
    with torch.inference_mode():
        hidden = model(torch.tensor(tokens), Forward(torch.arange(count), arena, batch))
        return model.logits(hidden).log_softmax(-1)
