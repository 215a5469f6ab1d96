"""From logits to tokens, vectorised over the batch.

Randomness is counter based: the uniform number that picks the token at position p of a sequence is
a function of (sampling seed, p) alone. A request's tokens therefore depend neither on what else is
in the batch nor on a preemption in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.core.plan import NewSequence
from vllm.core.request import TokenLogprobs
from vllm.worker.rows import Rows

NEGATIVE = float("-inf")


@dataclass(slots=True)
class _Rule:
    """What one row's sampling needs beyond the vectorised parameters; None: nothing."""

    allowed: Tensor | None  # int64 ids
    bias_ids: Tensor | None
    bias: Tensor | None
    bad_words: list[list[int]]
    ends: Tensor | None  # int64 ids that are barred until min_tokens
    min_tokens: int


class Sampler:
    """Holds the parameters of every row, and samples for the rows of a step."""

    def __init__(self, capacity: int, vocab_size: int) -> None:
        self._vocab = vocab_size
        self.temperature = np.zeros(capacity, dtype=np.float32)
        self.top_k = np.zeros(capacity, dtype=np.int64)
        self.top_p = np.ones(capacity, dtype=np.float32)
        self.min_p = np.zeros(capacity, dtype=np.float32)
        self.presence = np.zeros(capacity, dtype=np.float32)
        self.frequency = np.zeros(capacity, dtype=np.float32)
        self.repetition = np.ones(capacity, dtype=np.float32)
        self.seed = np.zeros(capacity, dtype=np.uint64)
        self.logprobs = np.full(
            capacity, -2, dtype=np.int64
        )  # -2: none asked, -1: whole vocabulary
        self.prompt_logprobs = np.full(capacity, -2, dtype=np.int64)
        self._rules: list[_Rule | None] = [None] * capacity

    def set_row(self, row: int, new: NewSequence) -> None:
        p = new.params
        self.temperature[row] = 0.0 if p.greedy else p.temperature
        self.top_k[row] = p.top_k if 0 < p.top_k < self._vocab else 0
        self.top_p[row], self.min_p[row] = p.top_p, p.min_p
        self.presence[row], self.frequency[row] = p.presence_penalty, p.frequency_penalty
        self.repetition[row] = p.repetition_penalty
        self.seed[row] = new.sampling_seed & (2**64 - 1)
        self.logprobs[row] = -2 if p.logprobs is None else p.logprobs
        self.prompt_logprobs[row] = -2 if p.prompt_logprobs is None else p.prompt_logprobs
        self._rules[row] = self._rule(new)

    def _rule(self, new: NewSequence) -> _Rule | None:
        p = new.params
        barred = [] if p.ignore_eos else list(new.eos_token_ids)
        barred += p.stop_token_ids or []
        ends = torch.tensor(barred) if p.min_tokens and barred else None
        if not (p.allowed_token_ids or p.logit_bias or new.bad_words_token_ids or ends is not None):
            return None
        bias = p.logit_bias or {}
        return _Rule(
            allowed=torch.tensor(p.allowed_token_ids) if p.allowed_token_ids else None,
            bias_ids=torch.tensor(list(bias)) if bias else None,
            bias=torch.tensor(list(bias.values())) if bias else None,
            bad_words=new.bad_words_token_ids,
            ends=ends,
            min_tokens=p.min_tokens,
        )

    def sample(
        self, logits: Tensor, rows: np.ndarray, state: Rows
    ) -> tuple[np.ndarray, list[TokenLogprobs | None] | None]:
        """logits float32 [S, V], one row of them for each of `rows`; they are overwritten.

        Returns the tokens, int64 [S], and the logprobs where a row asks for them: raw ones, of the
        distribution before temperature, penalties and masks.
        """
        asked = self.logprobs[rows]
        raw = torch.log_softmax(logits, -1) if (asked > -2).any() else None
        self._apply_rules(logits, rows, state)
        self._penalise(logits, rows, state)
        tokens = logits.argmax(-1)
        temperature = self.temperature[rows]
        drawn = np.flatnonzero(temperature > 0)
        if len(drawn):
            mine = rows[drawn]
            at = torch.from_numpy(drawn)
            scaled = logits[at] / torch.from_numpy(temperature[drawn]).unsqueeze(1)
            uniform = uniforms(self.seed[mine], state.length[mine])
            tokens[at] = draw(scaled, self.top_k[mine], self.top_p[mine], self.min_p[mine], uniform)
        chosen = tokens.numpy()
        if raw is None:
            return chosen, None
        return chosen, [
            token_logprobs(raw[i], int(chosen[i]), int(k)) if k > -2 else None
            for i, k in enumerate(asked)
        ]

    def _penalise(self, logits: Tensor, rows: np.ndarray, state: Rows) -> None:
        """Presence and frequency count the output; repetition counts prompt and output (CTRL's)."""
        presence, frequency = self.presence[rows], self.frequency[rows]
        repetition = self.repetition[rows]
        for i in np.flatnonzero((presence != 0) | (frequency != 0) | (repetition != 1)):
            row = rows[i]
            known = torch.from_numpy(state.tokens[row, : state.length[row]].astype(np.int64))
            out = known[state.prompt_len[row] :]
            if repetition[i] != 1:
                ids = known.unique()
                seen = logits[i, ids]
                factor = float(repetition[i])
                logits[i, ids] = torch.where(seen > 0, seen / factor, seen * factor)
            if len(out) and (presence[i] or frequency[i]):
                ids, counts = out.unique(return_counts=True)
                logits[i, ids] -= float(frequency[i]) * counts + float(presence[i])

    def _apply_rules(self, logits: Tensor, rows: np.ndarray, state: Rows) -> None:
        for i, row in enumerate(rows):
            rule = self._rules[row]
            if rule is None:
                continue
            if rule.allowed is not None:
                kept = logits[i, rule.allowed].clone()
                logits[i] = NEGATIVE
                logits[i, rule.allowed] = kept
            if rule.bias_ids is not None and rule.bias is not None:
                logits[i, rule.bias_ids] += rule.bias
            output = state.tokens[row, state.prompt_len[row] : state.length[row]]
            if rule.ends is not None and len(output) < rule.min_tokens:
                logits[i, rule.ends] = NEGATIVE
            for word in rule.bad_words:
                behind = word[:-1]
                if len(behind) <= len(output) and (
                    not behind or output[-len(behind) :].tolist() == behind
                ):
                    logits[i, word[-1]] = NEGATIVE


def draw(
    logits: Tensor, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray, uniform: np.ndarray
) -> Tensor:
    """One token a row from softmax(logits), cut by top-k, then top-p, then min-p.

    logits float32 [S, V]; the rest [S], uniform in [0, 1). Inverse transform sampling: the token at
    which the cumulated probability passes `uniform`. Returns int64 [S].
    """
    if not (top_k.any() or (top_p < 1).any()):
        probs = logits.softmax(-1)
        _apply_min_p(probs, min_p)
        return _inverse(probs, uniform)
    if top_k.all() and not (top_p < 1).any():
        ordered, ids = logits.topk(int(top_k.max()), -1)
    else:
        ordered, ids = logits.sort(-1, descending=True)
    rank = torch.arange(ordered.shape[1])
    k = torch.from_numpy(np.where(top_k > 0, top_k, logits.shape[1])).unsqueeze(1)
    ordered = ordered.masked_fill(rank >= k, NEGATIVE)
    probs = ordered.softmax(-1)
    # A token stays when the mass before it is below top_p; the likeliest always does.
    before = probs.cumsum(-1) - probs
    drop = before >= torch.from_numpy(top_p).unsqueeze(1)
    drop[:, 0] = False
    drop &= torch.from_numpy(top_p < 1).unsqueeze(1)
    probs = probs.masked_fill(drop, 0.0)
    _apply_min_p(probs, min_p)
    return ids.gather(1, _inverse(probs, uniform).unsqueeze(1)).squeeze(1)


def _apply_min_p(probs: Tensor, min_p: np.ndarray) -> None:
    """Drop what is less likely than min_p times the likeliest (Nguyen et al., 2024)."""
    if min_p.any():
        floor = probs.amax(-1, keepdim=True) * torch.from_numpy(min_p).unsqueeze(1)
        probs[probs < floor] = 0.0


def _inverse(weights: Tensor, uniform: np.ndarray) -> Tensor:
    """The first index at which the cumulated weight passes uniform * total; weight 0 never wins."""
    mass = weights.double().cumsum(-1)
    target = torch.from_numpy(uniform).unsqueeze(1) * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True).squeeze(1).clamp_(max=weights.shape[1] - 1)


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 [S] in [0, 1): SplitMix64 (Steele et al., 2014) over seed, then position."""
    with np.errstate(over="ignore"):
        mixed = _mix(seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        mixed = _mix(mixed ^ (positions.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def token_logprobs(logprobs: Tensor, token: int, top: int) -> TokenLogprobs:
    """One position's answer: the token itself, its rank, and the `top` likeliest (-1: all).

    logprobs float32 [V].
    """
    mine = logprobs[token]
    rank = int((logprobs > mine).sum()) + 1
    count = len(logprobs) if top == -1 else top
    values, ids = logprobs.topk(count)
    return TokenLogprobs([token, *ids.tolist()], [float(mine), *values.tolist()], rank)
