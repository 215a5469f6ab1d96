"""Compression on the worker's side: show metrics what they want to see, choose, copy out.

Between its forward pass and its end a step hands over the queries that it captured, and the orders
of its plan. What is known of a sequence beside its KVs lives here, under its number, from its first
step until it is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vllm.compression.choose import Protection, Rule, choose
from vllm.compression.metrics import Metric, Observed, make
from vllm.config.compression import CompressionSettings
from vllm.core.compression import CompressionParams
from vllm.core.plan import Choice, Compress, NewSequence, StepPlan
from vllm.kernels import Ops, head_blocks
from vllm.kv.table import HeadTable
from vllm.model_executor.forward import Capture
from vllm.model_executor.model import Model
from vllm.worker.inputs import StepInputs
from vllm.worker.queries import Part, QueryLog
from vllm.worker.rows import Rows

AT_ONCE = 16  # queries of decode steps that are kept before the metric sees them


@dataclass(slots=True)
class Watched:
    """A sequence that may be compressed."""

    params: CompressionParams
    prompt: int  # tokens
    log: QueryLog  # of the prompt, or of the stage of it that is computed
    ends: list[int]  # of its stages behind that
    kept: Tensor | None = None  # int64 [L, H, K]: positions that the last compression left; -1
    since: int = 0  # tokens then; later KVs stand behind those that were kept
    running: Tensor | None = None  # float32 [L, H, T]: what the metric has observed so far
    done: bool = False  # it will not be compressed again


@dataclass(slots=True)
class View:
    """Where a sequence's KVs are: KV i of a head at offset i % B of its head block i // B."""

    blocks: Tensor  # int64 [L, H, n]
    positions: Tensor  # int64 [L, H, T], -1 where padding

    def slots(self, keep: Tensor, size: int) -> Tensor:
        """The slots of KVs, bool [L, H, T], in the order of layers and heads: int64 [K]."""
        layer, head, at = keep.nonzero(as_tuple=True)
        return self.blocks[layer, head, at // size] * size + at % size


class Compressor:
    def __init__(
        self,
        model: Callable[[], Model],
        kv: Tensor,
        ops: Ops,
        settings: CompressionSettings,
        max_model_len: int,
    ) -> None:
        """model: asked for at each use, as its weights may be loaded anew.

        Raises ValueError for models that cannot be compressed.
        """
        _refuse(model(), max_model_len)
        self._settings = settings
        self._ops = ops
        self._shape = kv.shape[1:3]  # layers, KV heads
        self._size = kv.shape[4]
        self._blocks = head_blocks(kv)
        self._model = model
        self._rotate = model().rotate()
        self._metrics: dict[str, Metric] = {}
        self._watched: dict[int, Watched] = {}
        self._ranges: list[tuple[int, int, int]] = []  # of the step: sequence, first, last position
        self._metric(settings.defaults.metric)

    def _metric(self, name: str) -> Metric:
        if name not in self._metrics:
            self._metrics[name] = make(name, self._settings)
        return self._metrics[name]

    def watch(self, new: NewSequence) -> None:
        """A sequence has a row now. One that resumes is known from before."""
        params = new.compression
        if params is not None and not new.resumed:
            since = 0 if new.choice is None else new.choice.tokens
            ends = [end for end in (*new.stages, new.prompt_len) if end > since]
            log = QueryLog(self._metric(params.metric), ends[0])
            watched = self._watched[new.seq] = Watched(params, new.prompt_len, log, ends[1:])
            if new.choice is not None:
                watched.since = since
                watched.kept = torch.from_numpy(new.choice.positions.astype(np.int64))
                if new.choice.running is not None:
                    watched.running = torch.from_numpy(new.choice.running.copy())

    def forget(self, seqs: list[int]) -> None:
        for seq in seqs:
            self._watched.pop(seq, None)

    # ---- queries ------------------------------------------------------------------------------

    def capture(self, plan: StepPlan, inputs: StepInputs) -> Capture | None:
        """Which of the step's queries somebody wants, for the forward pass to take."""
        self._ranges = []
        tokens: list[np.ndarray] = []
        for i, seq in enumerate(plan.seqs if self._watched else ()):
            watched = self._watched.get(seq)
            if watched is None or watched.done:
                continue
            start, end = int(plan.starts[i]), int(plan.starts[i] + plan.counts[i])
            if watched.log.prompt <= start < watched.prompt:  # the next stage
                watched.log = QueryLog(watched.log.metric, watched.ends.pop(0))
            prompt = min(max(watched.log.prompt, start), end)
            for first, last in ((start, prompt), (prompt, end)):
                if first < last:
                    first, last = watched.log.wants(first, last)
                if first < last:
                    self._ranges.append((seq, first, last))
                    tokens.append(np.arange(first, last) - end + 1 + int(inputs.last[i]))
        return Capture(torch.from_numpy(np.concatenate(tokens))) if tokens else None

    def observe(self, capture: Capture | None, rows: Rows) -> None:
        """Take in what the forward pass captured; metrics see it when it is complete."""
        if capture is None:
            return
        queries = torch.stack(capture.queries)  # [L, n, Q, D]
        at = 0
        for seq, first, last in self._ranges:
            watched = self._watched[seq]
            watched.log.add(first, queries[:, at : at + last - first])
            at += last - first
            if watched.log.pending:
                self._show_what_is_complete(seq, watched, last, rows)

    def _show_what_is_complete(self, seq: int, watched: Watched, known: int, rows: Rows) -> None:
        """known: the sequence's tokens whose queries have been captured."""
        log, metric = watched.log, watched.log.metric
        if known > log.prompt:
            if log.waiting >= AT_ONCE:
                self._show(seq, watched, log.take(), rows, decoding=True)
        elif known == log.prompt:
            self._show(seq, watched, log.take(), rows)
        elif metric.window is None:
            over = known % metric.block if metric.block is not None else 0
            self._show(seq, watched, log.take(log.waiting - min(over, log.waiting)), rows)

    def _show(
        self, seq: int, watched: Watched, part: Part | None, rows: Rows, *, decoding: bool = False
    ) -> None:
        """Let the metric observe these queries, layer by layer."""
        if part is None:
            return
        start, queries = part
        end = start + queries.shape[1]
        view = self._view(watched, rows, seq, end)
        total = watched.running
        made = torch.zeros(view.positions.shape, dtype=torch.float32)
        if total is not None:
            made[..., : total.shape[-1]] = total
        for layer, seen in self._layers(watched, view, part, end):
            seen.running, seen.decoding = made[layer], decoding
            seen.since = watched.since
            made[layer] += watched.log.metric.observe(seen)
        watched.running = made

    # ---- what a metric sees -------------------------------------------------------------------

    def _view(self, watched: Watched, rows: Rows, seq: int, tokens: int) -> View:
        """The sequence's KVs of its first `tokens` tokens."""
        row, size = rows.row(seq), self._size
        table = rows.tables.get(row)
        layers, heads = self._shape
        if table is None:
            held = torch.from_numpy(rows.table[row, : -(-tokens // size)].astype(np.int64))
            head = torch.arange(layers * heads).view(layers, heads, 1)
            positions = torch.arange(tokens).expand(layers, heads, -1)
            return View(held * (layers * heads) + head, positions)
        assert watched.kept is not None
        count = (watched.kept >= 0).sum(-1, keepdim=True)  # [L, H, 1]
        width = int(count.max()) + tokens - watched.since
        at = torch.arange(width).expand(layers, heads, -1)
        padded = torch.nn.functional.pad(
            watched.kept, (0, max(0, width - watched.kept.shape[-1])), value=-1
        )
        added = watched.since + at - count
        positions = torch.where(at < count, padded[..., :width], added)
        positions = positions.masked_fill(positions >= tokens, -1)
        blocks = torch.from_numpy(table.head_blocks[..., : -(-width // size)].astype(np.int64))
        return View(blocks, positions)

    def _layers(
        self, watched: Watched, view: View, part: Part | None, length: int
    ) -> Iterator[tuple[int, Observed]]:
        """Each layer of a sequence of `length` tokens as a metric sees it, with these queries."""
        for layer, attention in enumerate(self._model().attentions()):
            empty = self._blocks.new_empty(0, attention.sizes[0], self._blocks.shape[-1])
            queries = empty if part is None else part[1][layer]
            first = 0 if part is None else part[0]
            yield (
                layer,
                Observed(
                    queries=queries,
                    query_positions=torch.arange(first, first + len(queries)),
                    read=partial(self._read, view, layer),
                    positions=view.positions[layer],
                    scale=attention.scale,
                    layer=layer,
                    length=length,
                    buffer=watched.params.metric_collection_buffer_size,
                    output=attention.out.weight,
                    rotate=self._rotate,
                ),
            )

    def _read(self, view: View, layer: int, side: int) -> Tensor:
        """The keys (side 0) or values (1) of a layer, [H, T, D]; zeros where padding."""
        positions, size = view.positions[layer], self._size
        lines = self._blocks.view(-1, self._blocks.shape[-1])  # B keys, B values, block by block
        at = torch.arange(positions.shape[-1])
        first = (2 * view.blocks[layer] + side) * size
        found = lines.index_select(0, (first[:, at // size] + at % size).view(-1))
        hole = (positions < 0).view(-1).nonzero().view(-1)
        if len(hole):  # what was never written may be anything, even NaN
            found.index_fill_(0, hole, 0)
        return found.view(*positions.shape, -1)

    # ---- orders -------------------------------------------------------------------------------

    def compress(self, order: Compress, rows: Rows) -> np.ndarray:
        """Carry an order out. Returns how many KVs each head has kept, int32 [L, H]."""
        watched = self._watched[order.seq]
        log, params = watched.log, watched.params
        self._show(order.seq, watched, log.take(), rows, decoding=order.tokens > log.prompt)
        view = self._view(watched, rows, order.seq, order.tokens)
        scores = self._score(watched, view, order)
        keep = choose(
            scores,
            view.positions,
            block_size=self._size,
            budget=order.budget,
            protect=Protection.of(params, order.tokens),
            rule=Rule(params.budget_rule, params.head_floor, self._settings.control_layers),
        )
        lengths = keep.sum(-1)
        table, _ = HeadTable.of(order.head_blocks, lengths.numpy(), order.tokens, self._size)
        place = torch.arange(int(lengths.max()))
        there = place < lengths.unsqueeze(-1)  # [L, H, most kept]
        blocks = torch.from_numpy(table.head_blocks.astype(np.int64))
        target = blocks[..., place // self._size] * self._size + place % self._size
        self._ops.copy_kv(self._blocks, view.slots(keep, self._size), target[there])
        watched.kept = torch.full(there.shape, -1)
        watched.kept[there] = view.positions[keep]
        watched.since = order.tokens
        if watched.running is not None:
            running = torch.zeros(there.shape, dtype=torch.float32)
            running[there] = watched.running[keep]
            watched.running = running
        watched.done = params.compress_once and order.tokens >= watched.prompt
        rows.tables[rows.row(order.seq)] = table
        return table.lengths

    def choice(self, seq: int) -> Choice:
        """What the sequence's latest compression left of it."""
        watched = self._watched[seq]
        assert watched.kept is not None
        running = None if watched.running is None else watched.running.numpy().copy()
        return Choice(watched.since, watched.kept.numpy().astype(np.int32), running)

    def _score(self, watched: Watched, view: View, order: Compress) -> Tensor:
        """float32 [L, H, T]"""
        running = watched.running
        if running is not None and running.shape[-1] < view.positions.shape[-1]:
            short = view.positions.shape[-1] - running.shape[-1]
            running = watched.running = torch.nn.functional.pad(running, (0, short))
        layers, heads = self._shape
        scores = torch.empty(view.positions.shape, dtype=torch.float32)
        for layer, seen in self._layers(watched, view, watched.log.window(), order.tokens):
            seen.running = None if running is None else running[layer]
            seen.keep = order.budget // (layers * heads)
            scores[layer] = watched.log.metric.score(seen)
        return scores


def _refuse(model: Model, max_model_len: int) -> None:
    """A window counts positions in a sequence's KVs, which have gaps once it is compressed."""
    for attention in model.attentions():
        if 0 < attention.window < max_model_len:
            raise ValueError(
                f"enable_kvc: layer {attention.layer} of {type(model).__name__} attends to a "
                f"sliding window of {attention.window} tokens; such models cannot be compressed"
            )
