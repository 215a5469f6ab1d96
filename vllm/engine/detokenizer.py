"""Incremental detokenisation: text as soon as it is certain, and stop strings across tokens."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.engine.tokenizer import Tokenizer

CONTEXT = 6  # prompt tokens in front, so that the first output token is spaced as in running text
STUCK = 16  # this many tokens without a whole character are not a character being spelt out
PENDING = 3  # tokens: an incomplete character has at most three bytes
INCOMPLETE = "\ufffd"  # what decoders put for bytes that are no character (yet)


class Detokenizer:
    """The text of one output.

    A window of tokens is decoded again with each new one, and what that adds to the text told of it
    so far is new, whatever a decoder does with spaces. Text that ends in an incomplete character
    waits for the token that completes it.

        | settled | told already | new |
                  _start         _read
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
        self._skip_special = skip_special_tokens
        self._ids = self._context(prompt[-CONTEXT:])
        self._start, self._read = 0, len(self._ids)
        self._told = self._decode(0)
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
        self._count += 1
        if self._silent(token):
            return None
        self._ids.append(token)
        whole = self._decode(self._start)
        new = self._new(whole)
        stuck = len(self._ids) - self._read > STUCK
        if whole.endswith(INCOMPLETE):
            if not stuck:
                return None
            # The last character may still be completed; what is in front of it will not change.
            new = new[:-1]
            self._start = self._read = len(self._ids) - PENDING
            self._told = self._decode(self._start)[:-1]
        elif new or stuck:
            self._start, self._read = self._read, len(self._ids)
            self._told = self._decode(self._start)
        self.text += new
        return self._find_stop(len(new))

    def finish(self) -> None:
        """No more tokens: what was held back as an incomplete character is let go."""
        self.text += self._new(self._decode(self._start))
        self._start = self._read = len(self._ids)
        self._told = ""

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

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last tokens, as far as the output goes on with their text.

        Behind a special token, such as the one that begins an answer, a new text starts, and a
        tokenizer that puts a space in front of every text takes that one away again.
        """
        ids: list[int] = []
        for token in prompt:
            ids = [] if self._silent(token) else [*ids, token]
        return ids

    def _silent(self, token: int) -> bool:
        """Whether decoding leaves the token out; the window then does without it too."""
        if self._skip_special and token in self._tokenizer.special_ids:
            return True
        return token >= self._tokenizer.vocab_size and not self._tokenizer.token(token)

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._ids[start:], skip_special_tokens=self._skip_special)

    def _new(self, whole: str) -> str:
        """What the window's text has beyond what was told of it."""
        for told in (self._told, self._told.rstrip(INCOMPLETE)):  # a prompt may end mid-character
            if whole.startswith(told):
                return whole[len(told) :]
        # New bytes made characters before them invalid, which are out already.
        return self._decode(self._read)

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
