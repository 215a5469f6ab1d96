"""From what a user sends to a request that the core can run."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.config.compression import refuse_wishes
from vllm.core.compression import CompressionParams
from vllm.core.errors import VLLMValidationError
from vllm.core.request import EngineRequest
from vllm.core.retention import HINT_FIELDS, NO_HINTS, hints
from vllm.engine.tokenizer import Tokenizer
from vllm.grammar import compile_grammar
from vllm.sampling_params import SamplingParams

MAX_SALT = 128
_SALT_REFUSED = re.compile(r"[@/\\\x00\ud800-\udfff]")
_PROMPT_FIELDS = {"prompt", "prompt_token_ids", "cache_salt", *HINT_FIELDS}
INT64 = 2**63  # what a message to the core can hold


class InputProcessor:
    """Validates and tokenises. Raises VLLMValidationError, naming the field, for bad input."""

    def __init__(self, config: VllmConfig, tokenizer: Tokenizer | None, max_model_len: int) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab = config.model.vocab_size
        self._eos = end_tokens(config.model, tokenizer)

    def make(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        arrival: float | None = None,
    ) -> tuple[EngineRequest, str | None]:
        """The core's request, and the prompt's text if it came as text.

        prompt: text, token ids, or a dict with `prompt` or `prompt_token_ids` and perhaps
        `cache_salt` and what the cache may know of it (`core.retention.HINT_FIELDS`).
        """
        text, ids, salt = self._prompt(prompt)
        self._verify_ids(ids)
        params = params.clone()  # the caller may change theirs, and may have done so
        params.verify_for(self._vocab, self._config.model.max_logprobs)
        if params.stop and self._tokenizer is None:
            raise VLLMValidationError("stop strings need a tokenizer", parameter="stop")
        if not isinstance(priority, int) or not -INT64 <= priority < INT64:
            raise VLLMValidationError(
                "priority must be an integer of 64 bits", parameter="priority", value=priority
            )
        if priority != 0 and self._config.scheduler.policy != "priority":
            raise VLLMValidationError(
                "priority needs an engine with --scheduling-policy priority",
                parameter="priority",
                value=priority,
            )
        room = self._max_model_len - len(ids)
        request = EngineRequest(
            request_id=request_id,
            prompt_token_ids=ids,
            params=params,
            max_tokens=_max_tokens(params, room),
            arrival=time.time() if arrival is None else arrival,
            priority=priority,
            cache_salt=checked_salt(salt if cache_salt is None else cache_salt),
            eos_token_ids=list(self._eos),
            bad_words_token_ids=self._bad_words(params),
            grammar=self._grammar(params),
            hints=hints(prompt) if isinstance(prompt, dict) else NO_HINTS,
            compression=self._compression(params, len(ids)),
        )
        return request, text

    def _prompt(self, prompt: Any) -> tuple[str | None, list[int], str | None]:
        salt = None
        if isinstance(prompt, dict):
            salt = prompt.get("cache_salt")
            unknown = set(prompt) - _PROMPT_FIELDS
            if unknown:
                raise VLLMValidationError(
                    f"a prompt cannot hold {', '.join(sorted(map(str, unknown)))}",
                    parameter="prompt",
                )
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            if ids is None and text is None:
                raise VLLMValidationError(
                    "a prompt dict needs prompt or prompt_token_ids", parameter="prompt"
                )
            if ids is not None:
                return text if isinstance(text, str) else None, self._id_list(ids), salt
            prompt = text
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise VLLMValidationError(
                    "this engine has no tokenizer; send token ids", parameter="prompt"
                )
            return prompt, self._tokenizer.encode(prompt), salt
        return None, self._id_list(prompt), salt

    def _id_list(self, ids: Any) -> list[int]:
        if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes)):
            raise VLLMValidationError(
                f"a prompt is text, token ids or a dict, not {type(ids).__name__}",
                parameter="prompt",
            )
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool):
                raise VLLMValidationError(
                    "token ids must be integers", parameter="prompt", value=token
                )
        return list(ids)

    def _verify_ids(self, ids: list[int]) -> None:
        if not ids:
            raise VLLMValidationError("the decoder prompt cannot be empty", parameter="prompt")
        if len(ids) >= self._max_model_len:
            raise VLLMValidationError(
                f"this model's maximum context length is {self._max_model_len} tokens, but the "
                f"prompt has {len(ids)} tokens and at least one must be left for the output",
                parameter="prompt",
                value=len(ids),
            )
        low, high = min(ids), max(ids)
        if low < 0 or high >= self._vocab:
            bad = low if low < 0 else high
            raise VLLMValidationError(
                f"token id {bad} is out of vocabulary (size {self._vocab})",
                parameter="prompt",
                value=bad,
            )

    def _grammar(self, params: SamplingParams) -> str | None:
        if params.structured_outputs is None:
            return None
        if self._tokenizer is None:
            raise VLLMValidationError(
                "structured outputs need a tokenizer", parameter="structured_outputs"
            )
        return compile_grammar(params.structured_outputs)

    def _compression(self, params: SamplingParams, prompt_len: int) -> CompressionParams | None:
        settings = self._config.compression
        if settings is None:
            refuse_wishes(params)
            return None
        return settings.resolve(params, prompt_len)

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Each word as it is tokenised at the start of a text, behind a space, and behind neither.

        The first and the last differ where a vocabulary writes the start of a text as a space.
        """
        if not params.bad_words:
            return []
        if self._tokenizer is None:
            raise VLLMValidationError("bad_words need a tokenizer", parameter="bad_words")
        found: list[list[int]] = []
        line = self._tokenizer.encode("\n", add_special_tokens=False)
        for word in params.bad_words:
            bare = word.lstrip(" ")
            forms = [
                self._tokenizer.encode(text, add_special_tokens=False)
                for text in (bare, " " + bare, "\n" + bare)
            ]
            behind_line = forms.pop()
            if behind_line[: len(line)] == line:
                forms.append(behind_line[len(line) :])
            for ids in forms:
                # A word with an id that the model lacks can never come.
                if ids and max(ids) < self._vocab and ids not in found:
                    found.append(ids)
        return found


def end_tokens(model: ModelConfig, tokenizer: Tokenizer | None) -> list[int]:
    """The ids that end a text: the model's, and the tokenizer's if that is another."""
    ends = list(model.eos_token_ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return [token for token in dict.fromkeys(ends) if 0 <= token < model.vocab_size]


def _max_tokens(params: SamplingParams, room: int) -> int:
    reference = params.reference_token_ids
    if reference is None:
        return room if params.max_tokens is None else min(room, params.max_tokens)
    if len(reference) > room:
        raise VLLMValidationError(
            f"reference_token_ids holds {len(reference)} tokens, but only {room} fit behind the "
            "prompt",
            parameter="reference_token_ids",
        )
    return len(reference)


def checked_salt(salt: Any) -> str | None:
    """A prompt's cache_salt, if it can be one. Raises VLLMValidationError."""
    if salt is None:
        return None
    if not isinstance(salt, str) or not salt:
        raise VLLMValidationError("cache_salt must be a non-empty string", parameter="cache_salt")
    if len(salt) > MAX_SALT or _SALT_REFUSED.search(salt):
        raise VLLMValidationError(
            f"cache_salt may have at most {MAX_SALT} characters and none of @ / \\ NUL",
            parameter="cache_salt",
        )
    return salt
