"""One worker: rows, model, arena, sampler. `execute` is a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vllm.config.compression import CompressionSettings
from vllm.core.plan import StepPlan, StepResult
from vllm.core.request import TokenLogprobs
from vllm.kernels import Ops
from vllm.model_executor.forward import Forward
from vllm.model_executor.model import Model
from vllm.worker.compressor import Compressor
from vllm.worker.inputs import StepInputs, build
from vllm.worker.rows import Rows
from vllm.worker.sampler import Sampler, token_logprobs

LOGITS_CHUNK = 256  # prompt positions whose logits are made at once


class ModelRunner:
    """Runs plans over one model and one arena, in this process."""

    def __init__(
        self,
        model: Model,
        kv: Tensor,
        ops: Ops,
        *,
        max_num_seqs: int,
        max_model_len: int,
        vocab_size: int,
        vocabulary: Callable[[], str],
        compression: CompressionSettings | None = None,
    ) -> None:
        """vocabulary: the tokenizer.json text, asked for when a grammar needs it."""
        self.model: Model | None = model  # None while its weights are asleep
        self.kv = kv
        self._rows = Rows(max_num_seqs, max_model_len, block_size=kv.shape[4])
        self._sampler = Sampler(max_num_seqs, vocab_size, vocabulary)
        self._compressor = (
            None
            if compression is None
            else Compressor(self._awake, kv, ops, compression, max_model_len)
        )

    def _awake(self) -> Model:
        assert self.model is not None, "nothing runs while the weights are asleep"
        return self.model

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        rows, fresh = self._rows.apply(plan)
        if self._compressor is not None:
            self._compressor.forget(plan.forget)
        for row in fresh:
            new = self._rows.new[row]
            assert new is not None
            self._sampler.set_row(row, new)
            if self._compressor is not None:
                self._compressor.watch(new)
        result = self._compute(plan, rows) if len(rows) else StepResult(tokens=[])
        if self._compressor is not None:
            result.kept = [self._compressor.compress(o, self._rows) for o in plan.compress]
            shared = [order.seq for order in plan.compress if order.shared]
            result.choices = {seq: self._compressor.choice(seq) for seq in shared}
        return result

    def _compute(self, plan: StepPlan, rows: np.ndarray) -> StepResult:
        model = self._awake()
        inputs = build(plan, rows, self._rows)
        compressor = self._compressor
        capture = None if compressor is None else compressor.capture(plan, inputs)
        step = Forward(inputs.positions, self.kv, inputs.dense, inputs.heads, capture)
        hidden = model(inputs.tokens, step)
        if compressor is not None:
            compressor.observe(capture, self._rows)
        prompt_logprobs = self._prompt_logprobs(hidden, plan, rows, inputs)
        sampled = rows[plan.sample]
        if not len(sampled):
            return StepResult(tokens=[], prompt_logprobs=prompt_logprobs)
        last = torch.from_numpy(inputs.last[plan.sample])
        logits = model.logits(hidden[last])
        tokens, logprobs = self._sampler.sample(logits, sampled, self._rows)
        self._rows.append(sampled, tokens)
        return StepResult(tokens.tolist(), logprobs, prompt_logprobs)

    def _prompt_logprobs(
        self, hidden: Tensor, plan: StepPlan, rows: np.ndarray, inputs: StepInputs
    ) -> dict[int, list[TokenLogprobs]] | None:
        """For rows that ask: the logprob of each next prompt token that this chunk predicts."""
        asked = self._sampler.prompt_logprobs[rows]
        if not (asked > -2).any():
            return None
        found: dict[int, list[TokenLogprobs]] = {}
        for i in np.flatnonzero(asked > -2):
            row, start, count = rows[i], int(plan.starts[i]), int(plan.counts[i])
            count = min(count, int(self._rows.prompt_len[row]) - 1 - start)
            if count <= 0:
                continue
            targets = self._rows.tokens[row, start + 1 : start + 1 + count].tolist()
            first = int(inputs.last[i]) + 1 - int(plan.counts[i])
            told: list[TokenLogprobs] = []
            for at in range(0, count, LOGITS_CHUNK):
                part = hidden[first + at : first + min(at + LOGITS_CHUNK, count)]
                logprobs = torch.log_softmax(self.model.logits(part), -1)
                told += [
                    token_logprobs(line, target, int(asked[i]))
                    for line, target in zip(logprobs, targets[at:], strict=False)
                ]
            found[plan.seqs[i]] = told
        return found
