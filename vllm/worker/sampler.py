"""From logits to tokens, vectorised over the batch: rules, grammars, penalties, then `draw`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.core.plan import NewSequence
from vllm.core.request import TokenLogprobs
from vllm.grammar.matcher import Matchers
from vllm.worker.draw import draw, uniforms
from vllm.worker.rows import Rows

NEGATIVE = float("-inf")
CHUNK_ROWS = 32  # rows drawn at once, so that their float64 sums stay small


@dataclass(slots=True)
class _Rule:
    """What one row's sampling needs beyond the vectorised parameters."""

    allowed: Tensor | None  # int64 ids
    bias_ids: Tensor | None
    bias: Tensor | None
    barred: list[int]  # bad words of one token
    bad_words: list[list[int]]  # the longer ones
    ends: list[int]  # ids that are barred until min_tokens
    min_tokens: int


class Sampler:
    """Holds the parameters of every row, and samples for the rows of a step."""

    def __init__(self, capacity: int, vocab_size: int, vocabulary: Callable[[], str]) -> None:
        self._vocab = vocab_size
        self._grammars = Matchers(vocabulary, vocab_size)
        self.temperature = np.zeros(capacity, dtype=np.float32)
        self.top_k = np.zeros(capacity, dtype=np.int64)
        self.top_p = np.ones(capacity, dtype=np.float64)
        self.min_p = np.zeros(capacity, dtype=np.float64)
        self.presence = np.zeros(capacity, dtype=np.float32)
        self.frequency = np.zeros(capacity, dtype=np.float32)
        self.repetition = np.ones(capacity, dtype=np.float32)
        self.seed = np.zeros(capacity, dtype=np.uint64)
        # How many are asked for; -2: none, -1: the whole vocabulary.
        self.logprobs = np.full(capacity, -2, dtype=np.int64)
        self.prompt_logprobs = np.full(capacity, -2, dtype=np.int64)
        self._rules: dict[int, _Rule] = {}  # of the rows that need one
        self._references: dict[int, list[int]] = {}  # outputs that are given, by row

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
        rule = self._rule(new)
        if rule is None:
            self._rules.pop(row, None)
        else:
            self._rules[row] = rule
        self._references.pop(row, None)
        if p.reference_token_ids is not None:
            self._references[row] = p.reference_token_ids
        self._grammars.end(row)
        if new.grammar is not None:
            output = new.tokens[new.prompt_len :]
            self._grammars.begin(row, new.grammar, output, new.eos_token_ids)

    def _rule(self, new: NewSequence) -> _Rule | None:
        p = new.params
        ends = []
        if p.min_tokens:
            ends = ([] if p.ignore_eos else new.eos_token_ids) + (p.stop_token_ids or [])
        if not (p.allowed_token_ids or p.logit_bias or new.bad_words_token_ids or ends):
            return None
        bias = p.logit_bias or {}
        return _Rule(
            allowed=torch.tensor(p.allowed_token_ids) if p.allowed_token_ids else None,
            bias_ids=torch.tensor(list(bias)) if bias else None,
            bias=torch.tensor(list(bias.values())) if bias else None,
            barred=[word[0] for word in new.bad_words_token_ids if len(word) == 1],
            bad_words=[word for word in new.bad_words_token_ids if len(word) > 1],
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
        wanted = np.flatnonzero(asked > -2)
        raw = torch.log_softmax(logits[torch.from_numpy(wanted)], -1) if len(wanted) else None
        self._apply_rules(logits, rows, state)
        self._apply_grammars(logits, rows)
        self._penalise(logits, rows, state)
        tokens = logits.argmax(-1)
        temperature = self.temperature[rows]
        drawn = np.flatnonzero(temperature > 0)
        for lo in range(0, len(drawn), CHUNK_ROWS):
            part = drawn[lo : lo + CHUNK_ROWS]
            mine, at = rows[part], torch.from_numpy(part)
            scaled = logits[at] / torch.from_numpy(temperature[part]).unsqueeze(1)
            uniform = uniforms(self.seed[mine], state.length[mine])
            tokens[at] = draw(scaled, self.top_k[mine], self.top_p[mine], self.min_p[mine], uniform)
        chosen = tokens.numpy()
        if self._references:
            self._force(chosen, rows, state)
        if self._grammars:
            for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
                if row in self._grammars:
                    self._grammars.accept(row, token)
        if raw is None:
            return chosen, None
        told: list[TokenLogprobs | None] = [None] * len(rows)
        for i, line in zip(wanted, raw, strict=True):
            told[i] = token_logprobs(line, int(chosen[i]), int(asked[i]))
        return chosen, told

    def _force(self, chosen: np.ndarray, rows: np.ndarray, state: Rows) -> None:
        """Teacher forcing: what was sampled gives way to the reference's next token."""
        for i, row in enumerate(rows.tolist()):
            reference = self._references.get(row)
            if reference is not None:
                chosen[i] = reference[state.length[row] - state.prompt_len[row]]

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

    def _apply_grammars(self, logits: Tensor, rows: np.ndarray) -> None:
        """What a grammar forbids is forbidden last, so that no other rule brings it back."""
        if not self._grammars:
            return
        for i, row in enumerate(rows.tolist()):
            if row in self._grammars:
                line = logits[i]
                line[torch.from_numpy(~self._grammars.allowed(row))] = NEGATIVE
                if line.amax() == NEGATIVE:  # the other rules forbid all that the grammar allows
                    line[self._grammars.ends] = 0.0

    def _apply_rules(self, logits: Tensor, rows: np.ndarray, state: Rows) -> None:
        """Allowed ids, bias, then bans. Bans that would leave no token at all are not applied."""
        if not self._rules:
            return
        for i, row in enumerate(rows.tolist()):
            rule = self._rules.get(row)
            if rule is None:
                continue
            line = logits[i]
            if rule.allowed is not None:
                kept = line[rule.allowed].clone()
                line.fill_(NEGATIVE)
                line[rule.allowed] = kept
            if rule.bias_ids is not None and rule.bias is not None:
                line[rule.bias_ids] += rule.bias
            barred = self._barred(
                rule, state.tokens[row, state.prompt_len[row] : state.length[row]]
            )
            if barred:
                ids = torch.tensor(barred)
                kept = line[ids].clone()
                line[ids] = NEGATIVE
                if line.amax() == NEGATIVE:
                    line[ids] = kept

    @staticmethod
    def _barred(rule: _Rule, output: np.ndarray) -> list[int]:
        """What may not come after `output`."""
        barred = list(rule.barred)
        if len(output) < rule.min_tokens:
            barred += rule.ends
        if rule.bad_words:
            tail = output[1 - max(map(len, rule.bad_words)) :].tolist()
            for word in rule.bad_words:
                behind = len(word) - 1
                if behind <= len(tail) and tail[len(tail) - behind :] == word[:-1]:
                    barred.append(word[-1])
        return barred


def token_logprobs(logprobs: Tensor, token: int, top: int) -> TokenLogprobs:
    """One position's answer: the token itself, its rank, and the `top` likeliest (-1: all).

    logprobs float32 [V].
    """
    mine = logprobs[token]
    rank = int((logprobs > mine).sum()) + 1
    count = len(logprobs) if top == -1 else min(top, len(logprobs))
    values, ids = logprobs.topk(count)
    return TokenLogprobs([token, *ids.tolist()], [float(mine), *values.tolist()], rank)
