"""Logprobs in the shapes of completions and of chats."""

from __future__ import annotations

from typing import Any

import msgspec

from vllm.engine.detokenizer import Detokenizer
from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.openai.protocol import GenerationBody
from vllm.entrypoints.openai.state import Server
from vllm.logprobs import Logprob, PositionLogprobs, PromptLogprobs

LOWEST = -9999.0  # JSON has no infinity


class CompletionLogprobs(msgspec.Struct):
    """Four parallel lists; the first token of a prompt has no logprob."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]


class LogprobWriter:
    """Turns positions into either shape. One per stream of tokens: it counts text offsets."""

    def __init__(self, tokenizer: Tokenizer | None, as_ids: bool) -> None:
        self._tokenizer, self._as_ids = tokenizer, as_ids
        self._offset = 0

    @classmethod
    def of(cls, server: Server, body: GenerationBody) -> LogprobWriter:
        asked = body.return_tokens_as_token_ids
        as_ids = server.args.return_tokens_as_token_ids if asked is None else asked
        return cls(server.engine.tokenizer, as_ids)

    def completion(
        self,
        ids: list[int],
        positions: list[PositionLogprobs | None],
        echo: str = "",
        echoed: int = 0,
    ) -> CompletionLogprobs:
        """echo: how the first `echoed` tokens, a prompt's, are shown."""
        written = CompletionLogprobs()
        written.text_offset += self._starts(ids[:echoed], echo)
        self._offset += len(echo)
        for i, (token_id, position) in enumerate(zip(ids, positions, strict=True)):
            chosen = position.get(token_id) if position else None
            token = self._text(token_id, chosen)
            written.tokens.append(token)
            if i >= echoed:
                written.text_offset.append(self._offset)
                self._offset += len(token)
            if position is None or chosen is None:
                written.token_logprobs.append(None)
                written.top_logprobs.append(None)
                continue
            written.token_logprobs.append(_finite(chosen))
            written.top_logprobs.append(
                {self._text(i, logprob): _finite(logprob) for i, logprob in position.items()}
            )
        return written

    def chat(
        self, ids: list[int], positions: list[PositionLogprobs] | None, top: int
    ) -> ChatLogprobs:
        return ChatLogprobs(
            [self._chat_token(i, p, top) for i, p in zip(ids, positions or [], strict=True)]
        )

    def _chat_token(self, token_id: int, position: PositionLogprobs, top: int) -> ChatTokenLogprob:
        chosen = position[token_id]
        # The sampled token comes along even when it is not among the likeliest.
        ranked = sorted(position.items(), key=lambda item: -item[1].logprob)
        token = self._text(token_id, chosen)
        return ChatTokenLogprob(
            token=token,
            logprob=_finite(chosen),
            bytes=_bytes(token),
            top_logprobs=[
                TokenLogprob(text := self._text(i, lp), _finite(lp), _bytes(text))
                for i, lp in (ranked if top == -1 else ranked[:top])
            ],
        )

    def _starts(self, ids: list[int], text: str) -> list[int]:
        """Where each token of a prompt begins in the text that it is shown as.

        Not where the lengths of tokens alone would have it: a tokenizer may put a space before a
        text and tokens around it, which are not shown, and the bytes of a character may be several.
        """
        if self._tokenizer is None:
            return [0] * len(ids)
        silent = self._tokenizer.decode(ids, skip_special_tokens=False) != text
        spelt = Detokenizer(self._tokenizer, (), skip_special_tokens=silent)
        starts = []
        for token in ids:
            starts.append(len(spelt.text))
            spelt.add(token)
        return starts

    def _text(self, token_id: int, logprob: Logprob | None) -> str:
        if self._as_ids or self._tokenizer is None:
            return f"token_id:{token_id}"
        if logprob is not None and logprob.decoded_token is not None:
            return logprob.decoded_token
        return self._tokenizer.text_of(token_id)


def prompt_positions(positions: PromptLogprobs | None) -> list[dict[str, Any] | None] | None:
    """Prompt logprobs as vLLM shows them: token id -> logprob, rank and text, for each position."""
    if positions is None:
        return None
    return [
        None
        if position is None
        else {
            str(token_id): {
                "logprob": _finite(lp),
                "rank": lp.rank,
                "decoded_token": lp.decoded_token,
            }
            for token_id, lp in position.items()
        }
        for position in positions
    ]


def _finite(logprob: Logprob) -> float:
    return max(logprob.logprob, LOWEST)


def _bytes(token: str) -> list[int]:
    return list(token.encode("utf-8", "replace"))
