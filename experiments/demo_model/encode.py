"""Training conversations as arrays: token ids, and how much each predicted token weighs."""

import random
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from experiments.demo_model import data
from experiments.demo_model.tokenizer import BOS_ID, END_ID, ROLE_IDS, build_tokenizer

# Weight of the first informative token, of the further ones, and of the closing "." and <|end|>.
# The curriculum watches exactly the tokens of weight 1.0: the first ones of ordinary answers.
WEIGHTS = {
    data.ANSWER: (1.0, 0.3, 0.2),
    data.HARD_ANSWER: (0.99, 0.4, 0.2),
    data.REPETITION: (0.5, 0.3, 0.2),
    data.TALK: (0.5, 0.3, 0.1),
    data.NOTED: (0.1, 0.1, 0.1),
}


class Encoder:
    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self.tokenizer = tokenizer or build_tokenizer()
        self.space_id = self.tokenizer.token_to_id("Ġ")
        self.ids = lru_cache(maxsize=200_000)(self._ids)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def count(self, text: str) -> int:
        return len(self.ids(text))

    def _weigh(self, ids: tuple[int, ...], kind: str) -> list[float]:
        """Weights of an assistant message's tokens and of the <|end|> after them.

        The space in front of digits says little, so the first *informative* token comes after it.
        """
        first, further, closing = WEIGHTS[kind]
        weights = [further] * len(ids) + [closing]
        start = 1 if ids[0] == self.space_id and len(ids) > 1 else 0
        weights[start] = first
        if kind in (data.ANSWER, data.HARD_ANSWER):
            weights[len(ids) - 1] = closing
        return weights

    def conversation(
        self, rng: random.Random, tokens: int, facts: int, how: data.Difficulty
    ) -> tuple[list[int], list[float]]:
        """Exactly `tokens` ids with their weights (0: not predicted, the visitor's own words)."""
        ids, weights = [BOS_ID], [0.0]
        for role, text, kind in data.training_conversation(rng, tokens, facts, how, self.count):
            piece = self.ids(text)
            ids += [ROLE_IDS[role], *piece, END_ID]
            weights.append(0.0)
            weights += [0.0] * (len(piece) + 1) if kind is None else self._weigh(piece, kind)
        return ids[:tokens], weights[:tokens]

    def batch(
        self,
        rng: random.Random,
        rows: int,
        tokens: int,
        facts: tuple[int, int],
        how: data.Difficulty,
    ) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((rows, tokens), np.int64)
        weights = np.zeros((rows, tokens), np.float32)
        for row in range(rows):
            ids[row], weights[row] = self.conversation(rng, tokens, rng.randint(*facts), how)
        return ids, weights
