"""The bodies of POST /v1/messages and its count_tokens, and the chats that they come to."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vllm.core.errors import VLLMValidationError
from vllm.core.retention import HINT_FIELDS
from vllm.entrypoints.openai.compression import passed_on
from vllm.entrypoints.openai.turn import ChatBody, chat_body


class ContentBlock(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None
    # tool_use
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    # tool_result
    tool_use_id: str | None = None
    content: str | list[ContentBlock] | None = None


class AnthropicMessage(BaseModel):
    role: Literal["user", "assistant"]
    content: str | list[ContentBlock]


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    input_schema: dict[str, Any]


class Choice(BaseModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class CountBody(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[ContentBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None

    def chat(self, **more: Any) -> ChatBody:
        """The same conversation as a chat completion. Raises VLLMValidationError."""
        fields: dict[str, Any] = {"messages": self._messages()} | more
        if self.tools:
            fields["tools"] = [_function(tool) for tool in self.tools]
            choice = self.tool_choice
            if choice is not None:
                fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
                fields["tool_choice"] = {"any": "required"}.get(choice.type, choice.type)
                if choice.type == "tool":
                    named = {"type": "function", "function": {"name": choice.name}}
                    fields["tool_choice"] = named
        return chat_body(fields)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": _texts(self.system, "system")})
        for i, message in enumerate(self.messages):
            messages += _plain(message, f"messages.{i}")
        return messages


class MessagesBody(CountBody):
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False

    def whole_chat(self) -> ChatBody:
        given = self.model_dump(
            include={"max_tokens", "temperature", "top_p", "top_k", "stream"}, exclude_none=True
        )
        extra = self.model_extra or {}
        given |= {name: extra[name] for name in HINT_FIELDS if name in extra}
        control = self._cache_control()
        if control is not None:
            given["cache_control"] = control
        given |= passed_on(self.model_extra)
        return self.chat(stop=self.stop_sequences, **given)

    def _cache_control(self) -> Any:
        """Marks on blocks keep the whole prompt: blocks of KVs know no borders of content."""
        blocks = [b for m in self.messages if not isinstance(m.content, str) for b in m.content]
        blocks += self.system if isinstance(self.system, list) else []
        marked = [(b.model_extra or {})["cache_control"] for b in blocks if _is_marked(b)]
        longest = [c for c in marked if isinstance(c, dict) and c.get("ttl") == "1h"]
        return (longest or marked or [None])[0]


def _is_marked(block: ContentBlock) -> bool:
    return bool(block.model_extra and block.model_extra.get("cache_control") is not None)


def _function(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _texts(content: str | list[ContentBlock], at: str) -> str | list[dict[str, Any]]:
    """Text parts as chats have them, with whatever else they carry."""
    if isinstance(content, str):
        return content
    for i, block in enumerate(content):
        if block.type != "text" or block.text is None:
            raise VLLMValidationError(
                f"content of type {block.type[:64]!r} is not supported here, only text",
                parameter=f"{at}.{i}.type",
            )
    return [block.model_dump(exclude_none=True) for block in content]


def _plain(message: AnthropicMessage, at: str) -> list[dict[str, Any]]:
    """One message as chats have it: results of tools are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    said: list[ContentBlock] = []
    calls, results = [], []
    for i, block in enumerate(message.content):
        where = f"{at}.content.{i}"
        if block.type == "tool_use":
            function = {"name": block.name or "", "arguments": json.dumps(block.input or {})}
            calls.append({"id": block.id or "", "type": "function", "function": function})
        elif block.type == "tool_result":
            text = _texts(block.content or "", f"{where}.content")
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
        elif block.type == "text" and block.text is not None:
            said.append(block)
        elif block.type not in ("thinking", "redacted_thinking"):  # what was thought is over
            raise VLLMValidationError(
                f"content of type {block.type[:64]!r} is not supported", parameter=f"{where}.type"
            )
    messages = results
    if said or calls or not results:
        content = _texts(said, f"{at}.content") if said else ""
        messages = [*results, {"role": message.role, "content": content}]
        if calls:
            messages[-1]["tool_calls"] = calls
    return messages
