"""What the request bodies of all families share."""

from __future__ import annotations

import json
import logging
import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from vllm.config import VllmConfig
from vllm.core.errors import VLLMValidationError
from vllm.core.retention import HINT_FIELDS, hints
from vllm.core.structured import StructuredOutputsParams
from vllm.engine.input import checked_salt
from vllm.entrypoints.openai.compression import FIELDS, CompressionFields
from vllm.sampling_params import GREEDY_BELOW, RequestOutputKind, SamplingParams, structured

logger = logging.getLogger(__name__)

MAX_PROMPTS = int(os.environ.get("VLLM_MAX_COMPLETION_PROMPTS", "2048"))

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]

MAX_XARGS = 64
Xarg = str | int | float | list[str | int | float]

# Fields that are passed on by their own name; None means that the client gave none.
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "allowed_token_ids",
    "bad_words",
    *FIELDS,
)

# Fields that are not implemented, each with values that ask for nothing (besides false and empty
# ones). Anything else is refused by name: a field that is silently ignored is a wrong answer.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "logits_processors": (),
    "prompt_embeds": (),
    "kv_transfer_params": (),
    "thinking_token_budget": (),
    "repetition_detection": (),
    "logprob_token_ids": (),
    "stream_interval": (1,),
}


class Body(BaseModel):
    """A JSON body. Unknown fields are accepted, as OpenAI's clients send many, and logged."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {}

    model: str | None = None

    def refuse_unsupported(self) -> None:
        """Raises VLLMValidationError naming a field that asks for what is not implemented."""
        extra = self.model_extra or {}
        for name, neutral in self.refused.items():
            value = extra.get(name)
            if value and value not in neutral:
                raise VLLMValidationError(f"{name} is not supported", parameter=name, value=value)
        unknown = [name[:64] for name in extra if name not in self.refused]
        if unknown and logger.isEnabledFor(logging.DEBUG):
            logger.debug("Request fields that have no meaning here: %r", unknown[:20])


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = "answer"
    # `schema` is a method of pydantic's models, hence the alias.
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`. A schema is always followed strictly."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None

    def structure(self) -> StructuredOutputsParams:
        if self.type == "json_object":
            return StructuredOutputsParams(json_object=True)
        if self.type == "structural_tag":
            return StructuredOutputsParams(structural_tag=json.dumps(self.model_extra))
        if self.json_schema is None or self.json_schema.json_schema is None:
            raise VLLMValidationError(
                "a response_format of type json_schema needs json_schema.schema",
                parameter="response_format.json_schema.schema",
            )
        return StructuredOutputsParams(json=self.json_schema.json_schema)


class GenerationBody(CompressionFields, Body):
    """A request that generates. A field that is None takes the model's default, or vLLM's."""

    refused = _REFUSED

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    request_id: str | None = None
    cache_salt: str | None = None
    kv_retention: dict[str, Any] | list[dict[str, Any]] | None = None
    cache_control: dict[str, Any] | None = None
    session_id: str | None = None
    workload: str | None = None
    prefix_mode: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    user: str | None = None
    vllm_xargs: Annotated[dict[str, Xarg], Field(max_length=MAX_XARGS)] | None = None
    use_beam_search: bool = False
    length_penalty: float | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None

    def check(self, config: VllmConfig) -> None:
        """Raises VLLMValidationError for fields that exclude each other, or the server excludes."""
        self.refuse_unsupported()
        if self.stream_options is not None and not self.stream:
            raise VLLMValidationError("stream_options needs stream", parameter="stream_options")
        if self.stream and self.prompt_logprobs:
            raise VLLMValidationError(
                "prompt_logprobs cannot be streamed", parameter="prompt_logprobs"
            )
        if self.priority and config.scheduler.policy != "priority":
            raise VLLMValidationError(
                "priority needs a server with --scheduling-policy priority", parameter="priority"
            )
        hints(self.hints())
        checked_salt(self.cache_salt)

    def hints(self) -> dict[str, Any]:
        """What the cache may know of the request."""
        return {n: v for n in HINT_FIELDS if (v := getattr(self, n)) is not None}

    @property
    def count(self) -> int:
        """How many outputs each prompt gets."""
        return 1 if self.n is None else self.n

    def structure(self) -> StructuredOutputsParams | None:
        """What `response_format` and `structured_outputs` ask for. Raises VLLMValidationError."""
        form = self.response_format
        asked = None if form is None or form.type == "text" else form
        if self.structured_outputs is not None:
            if asked is not None:
                raise VLLMValidationError(
                    "response_format and structured_outputs exclude each other",
                    parameter="response_format",
                )
            return structured(self.structured_outputs)
        return None if asked is None else asked.structure()

    def sampling_params(self, defaults: dict[str, Any], **given: Any) -> SamplingParams:
        """The client's values over the model's defaults. Raises VLLMValidationError."""
        chosen = {name: value for name, value in defaults.items() if name != "max_tokens"}
        for name in _SAMPLING:
            value = getattr(self, name)
            if value is not None:
                chosen[name] = value
        if self.use_beam_search:
            chosen["n"] = 1  # beams are requests of their own
        elif (
            self.count > 1
            and self.temperature is None
            and chosen.get("temperature", 1.0) < GREEDY_BELOW
        ):
            # Several greedy outputs would be equal, so asking for them is asking for sampling.
            chosen["temperature"] = 1.0
        if self.vllm_xargs:
            chosen["extra_args"] = self.vllm_xargs
        wish = self.structure()
        if wish is not None:
            chosen["structured_outputs"] = wish
        kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
        return SamplingParams(output_kind=kind, **chosen, **given)
