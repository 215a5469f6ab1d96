"""The forms that a prompt may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class _Salted(TypedDict, total=False):
    cache_salt: str  # only requests with the same salt share cached prefixes


class TextPrompt(_Salted):
    """Text, which the engine tokenises."""

    prompt: str


class _Told(_Salted, total=False):
    prompt: str  # what outputs shall show as the prompt's text


class TokensPrompt(_Told):
    """Token ids, which are taken as they are."""

    prompt_token_ids: list[int]


PromptType = str | Sequence[int] | TextPrompt | TokensPrompt
