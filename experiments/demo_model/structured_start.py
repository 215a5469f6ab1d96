"""A start that nearly builds recall by hand: without either half, training stays on a plateau.

    layer 0   head h looks h+1 tokens back (its query and key read only a constant dimension, so
              rotary positions alone decide) and writes what it sees into a slot of the residual
    later     a few chosen key-value heads compare slots: the query's recent words against each
              key's recent words, on slow rotary dimensions only, so that distance hardly counts;
              value and output copy the found token

The first retrieval head also writes the found token into the slot, where a later one can use it:
that is the second hop of "the code of the friend of ...". All other heads of the later layers
start small and random, and are free for whatever training finds.
"""

import math

import torch
from torch import Tensor

from experiments.demo_model.model import DemoModel, plain_start

# (layer, key-value head) of the retrieval heads, in the order of their copied subspaces.
RETRIEVAL_HEADS = ((1, 0), (2, 1), (2, 2), (3, 3))


def embedding_groups(tokens: list[str]) -> list[int]:
    """For each token the index of its first variant: " The", "the" and "THE" start out alike."""
    first: dict[str, int] = {}
    groups = []
    for index, token in enumerate(tokens):
        plain = token.replace("Ġ", "").lower()
        key = plain if plain and not token.startswith("<|") else token
        groups.append(first.setdefault(key, index))
    return groups


def _orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0].T[:rows]


@torch.no_grad()
def structured_start(
    model: DemoModel,
    tokens: list[str],
    names: list[int],
    slot: int = 32,
    scale: float = 0.1,
    sharpness: float = 2.2,
    similarity: float = 1.5,
    context: float = 0.5,
    hop: float = 0.5,
    name_scale: float = 0.6,
    retrieval: tuple[tuple[int, int], ...] = RETRIEVAL_HEADS,
) -> None:
    c = model.config
    size, head = c.hidden_size, c.head_dim
    plain_start(model, scale)

    # Embeddings: dimension 0 is the constant, the last `slot` ones are the slot, the rest random.
    groups = embedding_groups(tokens)
    own = torch.randn(len(tokens), size)
    model.embedding.copy_((0.85 * own[groups] + 0.53 * own) * scale)
    model.embedding[names] *= name_scale
    model.embedding[:, size - slot :] *= 0.05
    model.embedding[:, 0] = scale * math.sqrt(size) * 0.5
    constant = 0.5 * math.sqrt(size) / math.sqrt(1.25)  # dimension 0 after the norm, about

    def content_only(projection: Tensor) -> Tensor:
        projection = projection.clone()
        projection[:, 0] = 0
        projection[:, size - slot :] = 0
        return projection

    local = model.layers[0]
    frequencies = c.inverse_frequencies()
    seen = content_only(_orthonormal(head, size))
    to_slot = _orthonormal(head, slot).T if slot > head else _orthonormal(slot, head)
    key = torch.cat([torch.ones(head // 2), torch.zeros(head // 2)]) * 2.4 / constant
    for kv in range(c.kv_heads):
        rows = slice(kv * head, (kv + 1) * head)
        local.k[rows, 0] = key
        local.v[rows] = seen + torch.randn(head, size) * 0.1 / math.sqrt(size)
    for index in range(c.heads):
        columns = slice(index * head, (index + 1) * head)
        angles = -(index + 1) * frequencies
        local.q[columns, 0] = torch.cat([angles.cos(), angles.sin()]) * 3.6 * sharpness / constant
        local.o[size - slot :, columns] += to_slot * context * scale

    slow = torch.cat([frequencies, frequencies]) < 1e-3
    copies = _orthonormal(size, size)
    for place, (layer_index, kv) in enumerate(retrieval):
        layer = model.layers[layer_index]
        rows = slice(kv * head, (kv + 1) * head)
        compare = torch.zeros(head, size)
        compare[:, size - slot :] = torch.randn(head, slot) / math.sqrt(slot) * similarity
        compare[~slow] *= 0.1
        layer.k[rows] += compare
        first = place == 0
        start = place * head % size
        copied = seen if first else content_only(copies[start : start + head])
        layer.v[rows] = copied + torch.randn(head, size) * 0.1 / math.sqrt(size)
        for index in range(kv * c.group, (kv + 1) * c.group):
            columns = slice(index * head, (index + 1) * head)
            layer.q[columns] += compare
            layer.o[:, columns] = copied.T * scale / c.group
            layer.o[:, columns] += torch.randn(size, head) * 0.1 / math.sqrt(c.heads * head)
            if first:
                layer.o[size - slot :, columns] += to_slot * hop * scale / c.group
