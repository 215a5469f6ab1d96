"""Following grammars token by token: which tokens may come next in each sequence."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from llguidance import LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)


class Matchers:
    """The grammars of the sequences that have one, by any key that the caller has for a sequence.

    vocabulary: the tokenizer.json text, asked for when the first grammar comes. `vocab_size` is the
    model's; ids that the tokenizer lacks are never allowed.
    """

    def __init__(self, vocabulary: Callable[[], str], vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._tokenizer: LLTokenizer | None = None
        self._matchers: dict[int, LLMatcher] = {}
        self._words = np.zeros(-(-vocab_size // 32), dtype=np.int32)

    def __contains__(self, key: int) -> bool:
        return key in self._matchers

    def __bool__(self) -> bool:
        return bool(self._matchers)

    @property
    def ends(self) -> list[int]:
        """The EOS ids, once a grammar has begun."""
        assert self._tokenizer is not None
        return self._tokenizer.eos_tokens

    def begin(self, key: int, grammar: str, tokens: list[int], ends: list[int]) -> None:
        """Follow `grammar`, of which `tokens` were generated already; `ends` are the EOS ids."""
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(
                self._vocabulary(), n_vocab=self._vocab_size, eos_token=ends or None
            )
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        self._matchers[key] = matcher
        if tokens and not matcher.is_error():
            matcher.consume_tokens(tokens)
        self._tell(matcher)

    def end(self, key: int) -> None:
        self._matchers.pop(key, None)

    def allowed(self, key: int) -> np.ndarray:
        """bool [V], what may come next.

        Behind the end of a grammar only the EOS ids may come, and so behind the point where a
        grammar breaks the library's limits: a text that is cut short, never one that is wrong.
        """
        matcher = self._matchers[key]
        self._words[:] = 0
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
            self._tell(matcher)
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        mask = bits[: self._vocab_size].view(bool)
        if matcher.is_error() or not mask.any():
            mask[:] = False
            mask[self.ends] = True
        return mask

    def accept(self, key: int, token: int) -> None:
        """The sequence goes on with `token`."""
        matcher = self._matchers[key]
        early = token in self.ends and not matcher.is_accepting()
        if not (early or matcher.is_error() or matcher.is_stopped()):
            matcher.consume_token(token)
            self._tell(matcher)

    def _tell(self, matcher: LLMatcher) -> None:
        if matcher.is_error():
            logger.warning("a grammar ends here: %s", matcher.get_error()[:500])
