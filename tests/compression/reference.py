"""Every metric once more, one number at a time: O(n^2) loops over plain lists."""

from __future__ import annotations

import math

import torch

from vllm.compression.metrics import Observed


def attention(o: Observed, head: int, member: int, query: int) -> dict[int, float]:
    """Position -> probability for one query of one query head."""
    group = o.queries.shape[1] // len(o.keys)
    q = o.queries[query, head * group + member].tolist()
    at = int(o.query_positions[query])
    logits = {}
    for t, position in enumerate(o.positions[head].tolist()):
        if 0 <= position <= at:
            k = o.keys[head, t].tolist()
            logits[position] = o.scale * sum(a * b for a, b in zip(q, k, strict=True))
    top = max(logits.values())
    total = sum(math.exp(x - top) for x in logits.values())
    return {position: math.exp(x - top) / total for position, x in logits.items()}


def spread(o: Observed, told: list[dict[int, float]]) -> torch.Tensor:
    """[H, T] from one dict a head."""
    return torch.tensor(
        [[told[h].get(p, 0.0) for p in o.positions[h].tolist()] for h in range(len(o.positions))]
    )


def near(values: dict[int, float], position: int, size: int) -> list[float]:
    half = size // 2
    return [values[p] for p in range(position - half, position + half + 1) if p in values]


def members(o: Observed) -> range:
    return range(o.queries.shape[1] // len(o.keys))


def held(o: Observed, head: int) -> list[int]:
    return [p for p in o.positions[head].tolist() if p >= 0]


def kvc(
    o: Observed, *, power: int, average: bool, max_pool: bool, blocks: list[range]
) -> list[dict[int, float]]:
    """What prompt queries pay, block by block; in a window the average is carried to all ages."""
    told = []
    last = int(o.query_positions[-1])
    for head in range(len(o.keys)):
        total = dict.fromkeys(held(o, head), 0.0)
        for member in members(o):
            for block in blocks:
                paid = dict.fromkeys(total, 0.0)
                seen = dict.fromkeys(total, 0)
                for query in block:
                    at = int(o.query_positions[query])
                    weights = attention(o, head, member, query)
                    for p in paid:
                        if at - p >= o.buffer:
                            paid[p] += weights[p] ** power
                            seen[p] += 1
                if average:
                    for p in paid:
                        could = last - p - o.buffer + 1
                        paid[p] = paid[p] * could / seen[p] if seen[p] else 0.0
                end = int(o.query_positions[block[-1]])
                for p in (p for p in total if p <= end):
                    total[p] += max(near(paid, p, 7)) if max_pool else paid[p]
        told.append(total)
    return told


def mean_attention(o: Observed, head: int, queries: range) -> dict[int, float]:
    total = dict.fromkeys(held(o, head), 0.0)
    for member in members(o):
        for query in queries:
            for p, weight in attention(o, head, member, query).items():
                total[p] += weight / len(queries) / len(members(o))
    return total


def snapkv(o: Observed, size: int = 7) -> list[dict[int, float]]:
    told = []
    for head in range(len(o.keys)):
        mean = mean_attention(o, head, range(len(o.queries)))
        told.append({p: sum(near(mean, p, size)) / len(near(mean, p, size)) for p in mean})
    return told


def h2o(o: Observed) -> list[dict[int, float]]:
    count = len(o.queries) * len(members(o))
    return [
        {p: m * count for p, m in mean_attention(o, h, range(len(o.queries))).items()}
        for h in range(len(o.keys))
    ]


def tova(o: Observed) -> list[dict[int, float]]:
    last = len(o.queries) - 1
    heads = [mean_attention(o, h, range(last, last + 1)) for h in range(len(o.keys))]
    everywhere = {p for head in heads for p in head}
    mean = {p: sum(head.get(p, 0.0) for head in heads) / len(heads) for p in everywhere}
    return [mean] * len(heads)


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def _keys(o: Observed, head: int) -> dict[int, list[float]]:
    return {p: o.keys[head, t].tolist() for t, p in enumerate(o.positions[head].tolist()) if p >= 0}


def knorm(o: Observed) -> list[dict[int, float]]:
    return [{p: -math.hypot(*k) for p, k in _keys(o, h).items()} for h in range(len(o.keys))]


def keydiff(o: Observed) -> list[dict[int, float]]:
    told = []
    for head in range(len(o.keys)):
        keys = _keys(o, head)
        units = [[x / math.hypot(*k) for x in k] for k in keys.values()]
        mean = [sum(column) / len(units) for column in zip(*units, strict=True)]
        told.append({p: -_cosine(k, mean) for p, k in keys.items()})
    return told


def rkv(o: Observed) -> list[dict[int, float]]:
    told = []
    for head in range(len(o.keys)):
        mean = mean_attention(o, head, range(len(o.queries)))
        pooled = {p: max(near(mean, p, 7)) for p in mean}
        importance = {p: x / sum(pooled.values()) for p, x in pooled.items()}
        keys = _keys(o, head)
        redundancy = dict.fromkeys(keys, 0.0)
        for row in keys:
            cosines = {p: _cosine(keys[row], keys[p]) for p in keys if p != row}
            similar = [p for p, c in cosines.items() if c >= 0.8]
            for p, c in cosines.items():
                if not similar or p != max(similar):
                    redundancy[p] += c / len(keys)
        total = sum(math.exp(x) for x in redundancy.values())
        told.append({p: 0.1 * importance[p] - 0.9 * math.exp(redundancy[p]) / total for p in keys})
    return told


def kvc_diff(o: Observed, running: list[dict[int, float]]) -> list[dict[int, float]]:
    """running: what `kvc` has told of each head."""
    told = []
    for head, paid in enumerate(running):
        keys = _keys(o, head)
        likeness = {p: sum(_cosine(keys[p], k) for k in keys.values()) / len(keys) for p in keys}
        total = sum(math.exp(x) for x in likeness.values())
        told.append(
            {
                p: 0.1 * paid[p] / sum(paid.values()) - 0.9 * math.exp(likeness[p]) / total
                for p in keys
            }
        )
    return told


def expected_attention(o: Observed, turn, future: int) -> list[dict[int, float]]:
    """`turn(vector, position)` rotates one vector; every future position is tried on its own."""
    told = []
    group = len(members(o))
    ahead = range(o.now + 1, o.now + 1 + future)
    for head in range(len(o.keys)):
        keys = torch.tensor(list(_keys(o, head).values()), dtype=torch.float64)
        places = list(_keys(o, head))
        share = torch.zeros(len(places), dtype=torch.float64)
        for member in range(group):
            plain = torch.stack(
                [
                    turn(q.double(), -int(p))
                    for q, p in zip(
                        o.queries[:, head * group + member], o.query_positions, strict=True
                    )
                ]
            )
            # The mean rotation is linear, so it may be put on each query before the statistics.
            turned = torch.stack([sum(turn(q, p) for p in ahead) / future for q in plain])
            mean = turned.mean(0)
            spread_ = sum(torch.outer(x - mean, x - mean) for x in turned) / len(turned)
            logits = torch.stack(
                [o.scale * (mean @ k) + o.scale**2 / 2 * (k @ spread_ @ k) for k in keys]
            )
            share += logits.softmax(0) / group
        values = {p: t for t, p in enumerate(o.positions[head].tolist())}
        told.append(
            {
                p: float(s) * float(o.values[head, values[p]].norm())
                for p, s in zip(places, share, strict=True)
            }
        )
    return told
