"""One turn of a conversation, from the request to the text that comes: what all chats share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from vllm.config import VllmConfig
from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.beams import check_beams
from vllm.entrypoints.openai.compression import Count, check_compression
from vllm.entrypoints.openai.messages import Message, Scalar, render
from vllm.entrypoints.openai.protected import leading, places
from vllm.entrypoints.openai.protocol import GenerationBody
from vllm.entrypoints.openai.speech import Speech
from vllm.entrypoints.openai.state import Job, Server, engine_id
from vllm.entrypoints.openai.tools.choice import ToolChoice


class ChatBody(GenerationBody):
    refused = GenerationBody.refused | {
        "functions": (),
        "function_call": ("none",),
        "chat_template": (),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "mm_processor_kwargs": (),
        "media_io_kwargs": (),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=-1)] | None = None
    echo: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False  # templates write them
    chat_template_kwargs: dict[str, Scalar] | None = None
    documents: Annotated[list[dict[str, Any]], Field(max_length=1024)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool = True
    protected_messages: Literal["system"] | list[Count] | None = None
    shared_prefix: Literal["system"] | None = None

    def check(self, config: VllmConfig) -> None:
        super().check(config)
        if self.top_logprobs and not self.logprobs:
            raise VLLMValidationError("top_logprobs needs logprobs", parameter="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise VLLMValidationError(
                "continue_final_message needs add_generation_prompt false",
                parameter="continue_final_message",
            )
        if self.protected_messages is not None and config.compression is None:
            raise VLLMValidationError(
                "protected_messages needs an engine with --enable-kvc",
                parameter="protected_messages",
            )
        if self.protected_messages is not None and self.truncate_prompt_tokens is not None:
            raise VLLMValidationError(
                "protected_messages and truncate_prompt_tokens exclude each other",
                parameter="protected_messages",
            )
        if self.shared_prefix is not None:
            if config.compression is None or not config.compression.share:
                raise VLLMValidationError(
                    "shared_prefix needs an engine with --enable-kvc --share-compressed-prefixes",
                    parameter="shared_prefix",
                )
            for other in ("shared_prefix_tokens", "truncate_prompt_tokens"):
                if getattr(self, other) is not None:
                    raise VLLMValidationError(
                        f"shared_prefix and {other} exclude each other", parameter="shared_prefix"
                    )


def chat_body(fields: dict[str, Any], *, messages: str = "messages") -> ChatBody:
    """The chat that another family's request comes to; `messages`: that family's name for them.

    Raises VLLMValidationError, naming the field.
    """
    try:
        return ChatBody(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]).replace("messages", messages)
        raise VLLMValidationError(f"{where}: {first['msg']}", parameter=where) from error


@dataclass(slots=True)
class Turn:
    """A chat request that is ready for the engine."""

    server: Server
    body: ChatBody
    tools: ToolChoice
    job: Job

    @classmethod
    async def begin(cls, server: Server, body: ChatBody, id: str) -> Turn:
        """Check, render and tokenise. Raises VLLMValidationError, naming the field."""
        body.check(server.engine.config)
        check_beams(body)
        tools = _tool_choice(server, body)
        return cls(server, body, tools, await _job(server, body, tools, id))

    def speech(self) -> Speech:
        """A reader for one answer's text."""
        return Speech(self.tools, self.server.args.reasoning_parser, self.job.text or "")


def _tool_choice(server: Server, body: ChatBody) -> ToolChoice:
    args = server.args
    tools = ToolChoice(
        body.tools,
        body.tool_choice,
        auto_parser=args.tool_call_parser if args.enable_auto_tool_choice else None,
        parallel=body.parallel_tool_calls is not False,
    )
    if body.structure() is not None:
        if tools.kind != "none":
            raise VLLMValidationError(
                "structured outputs and tool calls exclude each other; use tool_choice none",
                parameter="tool_choice" if body.tool_choice else "tools",
            )
        tools.structure = body.structure()
    return tools


async def _job(server: Server, body: ChatBody, tools: ToolChoice, id: str) -> Job:
    rendered = partial(
        render,
        server,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tools=body.tools,
        documents=body.documents,
        kwargs=body.chat_template_kwargs,
    )
    text = rendered(body.messages)
    ids = await server.encode(text, add_special_tokens=body.add_special_tokens)
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    asked = getattr(body, field)
    ids = server.truncated(ids, body.truncate_prompt_tokens, body.truncation_side, asked or 1)
    generation = server.engine.config.model.generation
    max_tokens = server.room(
        len(ids), asked, generation.get("max_tokens"), prompt="messages", field=field
    )
    params = body.sampling_params(
        generation,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
    if body.protected_messages is not None:
        spans = await server.spans(
            text,
            places(body.messages, body.protected_messages, text, rendered),
            add_special_tokens=body.add_special_tokens,
        )
        params.protected_spans = [*(params.protected_spans or []), *spans]
    if body.shared_prefix is not None:
        spans = await server.spans(
            text,
            places(body.messages, leading(body.messages), text, rendered, "shared_prefix"),
            add_special_tokens=body.add_special_tokens,
        )
        if not spans:
            raise VLLMValidationError(
                "shared_prefix: the messages begin with no system message",
                parameter="shared_prefix",
            )
        params.shared_prefix_tokens = spans[-1][1]
    check_compression(server.engine.config, params, len(ids))
    if tools.structure is not None:
        if params.reference_token_ids is not None:
            raise VLLMValidationError(
                "reference_token_ids and forced tool calls or formats exclude each other",
                parameter="reference_token_ids",
            )
        params.structured_outputs = tools.structure
    if tools.shows_special and body.skip_special_tokens is None:
        params.skip_special_tokens = False
    return Job(engine_id(id, 0), ids, params, text, body.priority, body.cache_salt, body.hints())
