"""Incremental detokenisation: text as soon as it is certain, and stop strings across tokens."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.engine.tokenizer import Tokenizer

CONTEXT = 6  # prompt tokens in front, so that the first output token is spaced as in running text
STUCK = 16  # this many tokens without a whole character are not a character being spelt out
INCOMPLETE = "\ufffd"  # what decoders put for bytes that are no character (yet)


class Detokenizer:
    """The text of one output.

    Tokens before `_prefix` are settled. Decoding `[_prefix, _read)` and `[_prefix, end)` and taking
    the difference gives the new text whatever a decoder does with spaces; text that ends in an
    incomplete character waits for the token that completes it.

        | settled | decoded already | new |
                  _prefix           _read
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT:])
        self._prefix, self._read = 0, len(self._ids)
        self._skip_special = skip_special_tokens
        self._stop = list(stop)
        self._include_stop = include_stop
        # A stop string may begin in text that is out already; so much is held back.
        self._hold = 0 if include_stop else max(map(len, self._stop), default=1) - 1
        self._min_tokens = min_tokens
        self._count = 0
        self._sent = 0
        self.text = ""

    def add(self, token: int) -> str | None:
        """Append a token; returns the stop string that it completes, if any, and cuts the text."""
        self._ids.append(token)
        self._count += 1
        before = self._decode(self._prefix, self._read)
        whole = self._decode(self._prefix, len(self._ids))
        stuck = len(self._ids) - self._read > STUCK
        if len(whole) <= len(before) or (whole.endswith(INCOMPLETE) and not stuck):
            return None
        self._settle(whole[len(before) :])
        return self._find_stop(len(whole) - len(before))

    def finish(self) -> None:
        """No more tokens: what was held back as an incomplete character is let go."""
        before = self._decode(self._prefix, self._read)
        whole = self._decode(self._prefix, len(self._ids))
        if len(whole) > len(before):
            self._settle(whole[len(before) :])

    def take(self, *, finished: bool) -> str:
        """The text since the last call, but for what may still become a stop string."""
        end = len(self.text) if finished else max(self._sent, len(self.text) - self._hold)
        new = self.text[self._sent : end]
        self._sent = end
        return new

    @property
    def shown(self) -> str:
        """All text that `take` has given so far."""
        return self.text[: self._sent]

    def _settle(self, new: str) -> None:
        self.text += new
        self._prefix, self._read = self._read, len(self._ids)

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=self._skip_special)

    def _find_stop(self, new: int) -> str | None:
        """The stop string that begins first in the text that `new` characters have completed."""
        if self._count < self._min_tokens or not self._stop:
            return None
        best: tuple[int, str] | None = None
        for stop in self._stop:
            at = self.text.find(stop, max(0, len(self.text) - new - len(stop) + 1))
            if at >= 0 and (best is None or at < best[0]):
                best = (at, stop)
        if best is None:
            return None
        at, stop = best
        self.text = self.text[: at + len(stop) if self._include_stop else at]
        return stop
