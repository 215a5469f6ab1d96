"""The demo model: a small Llama, written for fast training on one CPU core.

Shapes: B rows, T tokens, D hidden size, N query heads, K key-value heads, H head size.
Exported weights carry Hugging Face's names.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int
    hidden_size: int = 128
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    mlp_size: int = 256
    rope_theta: float = 1e7
    norm_eps: float = 1e-5

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads

    def inverse_frequencies(self) -> Tensor:
        return 1 / self.rope_theta ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim)


class BlockedCausalAttention(torch.autograd.Function):
    """Causal attention as plain matmuls over blocks of queries, keeping the probabilities.

    torch's own CPU attention spends over half of a training step in its backward pass; at these
    sizes the probabilities fit in memory and this form is several times faster.
    """

    @staticmethod
    def _block(tokens: int) -> int:
        return tokens if tokens <= 128 else max(64, tokens // 8)

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # each [B*N, T, H]
        tokens, size = query.shape[1:]
        block = BlockedCausalAttention._block(tokens)
        out = torch.empty_like(query)
        scaled = (key * size**-0.5).transpose(1, 2)
        above = torch.full((block, block), float("-inf"), dtype=query.dtype).triu(1)
        kept = []
        for start in range(0, tokens, block):
            end = min(start + block, tokens)
            scores = torch.bmm(query[:, start:end], scaled[:, :, :end])
            scores[:, :, start:] += above[: end - start, : end - start]
            probabilities = torch.softmax(scores, -1)
            out[:, start:end] = torch.bmm(probabilities, value[:, :end])
            kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *kept = ctx.saved_tensors
        tokens, size = query.shape[1:]
        block = BlockedCausalAttention._block(tokens)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_out = grad_out.contiguous()
        value_t = value.transpose(1, 2)
        for index, probabilities in enumerate(kept):
            start = index * block
            end = min(start + block, tokens)
            grad_block = grad_out[:, start:end]
            grad_value[:, :end] += torch.bmm(probabilities.transpose(1, 2), grad_block)
            grad_probabilities = torch.bmm(grad_block, value_t[:, :, :end])
            grad_scores = torch._softmax_backward_data(
                grad_probabilities, probabilities, -1, probabilities.dtype
            )
            grad_query[:, start:end] = torch.bmm(grad_scores, key[:, :end]) * size**-0.5
            grad_key[:, :end] += (
                torch.bmm(grad_scores.transpose(1, 2), query[:, start:end]) * size**-0.5
            )
        return grad_query, grad_key, grad_value


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape))

        self.q = weight(c.heads * c.head_dim, c.hidden_size)
        self.k = weight(c.kv_heads * c.head_dim, c.hidden_size)
        self.v = weight(c.kv_heads * c.head_dim, c.hidden_size)
        self.o = weight(c.hidden_size, c.heads * c.head_dim)
        self.gate = weight(c.mlp_size, c.hidden_size)
        self.up = weight(c.mlp_size, c.hidden_size)
        self.down = weight(c.hidden_size, c.mlp_size)
        self.attention_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.mlp_norm = nn.Parameter(torch.ones(c.hidden_size))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x: [B, T, D]
        c, kind = self.config, x.dtype
        batch, tokens, size = x.shape
        h = F.rms_norm(x, (size,), self.attention_norm.to(kind), c.norm_eps)
        fused = F.linear(h, torch.cat([self.q, self.k, self.v]).to(kind))
        fused = fused.view(batch, tokens, c.heads + 2 * c.kv_heads, c.head_dim).transpose(1, 2)
        turned, value = fused.split([c.heads + c.kv_heads, c.kv_heads], 1)
        turned = turned * cos + rotate_half(turned) * sin
        query, key = turned.split([c.heads, c.kv_heads], 1)
        key = key.repeat_interleave(c.group, 1)
        value = value.repeat_interleave(c.group, 1)
        flat = (-1, tokens, c.head_dim)
        mixed = BlockedCausalAttention.apply(
            query.reshape(flat), key.reshape(flat), value.reshape(flat)
        ).view(batch, c.heads, tokens, c.head_dim)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, tokens, -1), self.o.to(kind))
        h = F.rms_norm(x, (size,), self.mlp_norm.to(kind), c.norm_eps)
        gate, up = F.linear(h, torch.cat([self.gate, self.up]).to(kind)).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down.to(kind))


class DemoModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, ids: Tensor, wanted: Tensor, kind: torch.dtype = torch.bfloat16) -> Tensor:
        """Logits [len(wanted), vocabulary] at the flat positions `wanted` of ids [B, T].

        Only those, because four of five positions are the visitor's words and carry no loss.
        """
        angles = torch.arange(ids.shape[1])[:, None].float() * self.config.inverse_frequencies()
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos().to(kind), angles.sin().to(kind)
        x = F.embedding(ids, self.embedding).to(kind)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = x.reshape(-1, self.config.hidden_size)[wanted]
        x = F.rms_norm(x, (self.config.hidden_size,), self.norm.to(kind), self.config.norm_eps)
        return F.linear(x, self.embedding.to(kind)).float()

    def hugging_face_weights(self) -> dict[str, Tensor]:
        """The weights under the names of `LlamaForCausalLM` (embeddings tied: no lm_head)."""
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        for index, layer in enumerate(self.layers):
            for theirs, ours in {
                "self_attn.q_proj": layer.q,
                "self_attn.k_proj": layer.k,
                "self_attn.v_proj": layer.v,
                "self_attn.o_proj": layer.o,
                "mlp.gate_proj": layer.gate,
                "mlp.up_proj": layer.up,
                "mlp.down_proj": layer.down,
                "input_layernorm": layer.attention_norm,
                "post_attention_layernorm": layer.mlp_norm,
            }.items():
                named[f"model.layers.{index}.{theirs}.weight"] = ours
        return {name: weight.detach() for name, weight in named.items()}

    @torch.no_grad()
    def load_hugging_face_weights(self, weights: dict[str, Tensor]) -> None:
        own = self.hugging_face_weights()
        if own.keys() != weights.keys():
            raise ValueError(f"weights do not fit: {sorted(own.keys() ^ weights.keys())}")
        for name, weight in own.items():
            weight.copy_(weights[name])


def plain_start(model: DemoModel, scale: float = 0.1) -> None:
    """Ordinary small random weights, the ground that the structured start builds on."""
    c = model.config
    nn.init.normal_(model.embedding, 0, scale)
    for layer in model.layers:
        for weight in (layer.q, layer.k):
            nn.init.normal_(weight, 0, 0.15 / math.sqrt(c.hidden_size))
        for weight in (layer.gate, layer.up):
            nn.init.normal_(weight, 0, 0.7 / math.sqrt(c.hidden_size))
        nn.init.normal_(layer.v, 0, 0.5 / math.sqrt(c.hidden_size))
        out_scale = 1 / math.sqrt(2 * c.layers)
        nn.init.normal_(layer.o, 0, 0.3 * out_scale / math.sqrt(c.heads * c.head_dim))
        nn.init.normal_(layer.down, 0, 0.5 * out_scale / math.sqrt(c.mlp_size))
