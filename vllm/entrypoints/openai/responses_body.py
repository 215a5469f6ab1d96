"""The body of POST /v1/responses, and the chat that it comes to."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vllm.core.errors import VLLMValidationError
from vllm.core.retention import HINT_FIELDS
from vllm.entrypoints.openai.compression import passed_on
from vllm.entrypoints.openai.turn import ChatBody, chat_body

# What is not implemented, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
    "truncation": ("disabled",),
}


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    format: TextFormat | None = None


class ResponsesBody(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = False
    store: bool | None = True
    background: bool | None = False
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    text: TextOptions | None = None
    reasoning: dict[str, Any] | None = None
    user: str | None = None

    def chat(self, history: list[dict[str, Any]]) -> ChatBody:
        """The turn as a chat completion. Raises VLLMValidationError."""
        for name, neutral in _REFUSED.items():
            value = (self.model_extra or {}).get(name)
            if value and value not in neutral:
                raise VLLMValidationError(f"{name} is not supported", parameter=name)
        if self.background and not self.store:
            raise VLLMValidationError("background needs store", parameter="background")
        if self.background and self.stream:
            raise VLLMValidationError(
                "background responses cannot be streamed", parameter="background"
            )
        opening = []
        if self.instructions:
            opening = [{"role": "system", "content": self.instructions}]
        fields: dict[str, Any] = {
            "messages": opening + history,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": True,
        } | passed_on(self.model_extra)
        extra = self.model_extra or {}
        fields |= {name: extra[name] for name in HINT_FIELDS if name in extra}
        if self.tools:
            fields["tools"] = [_tool(tool, i) for i, tool in enumerate(self.tools)]
            fields["parallel_tool_calls"] = self.parallel_tool_calls
            choice = self.tool_choice
            if isinstance(choice, dict):
                choice = {"type": "function", "function": {"name": choice.get("name")}}
            fields["tool_choice"] = choice
        form = self.text.format if self.text is not None else None
        if form is not None and form.type == "json_schema":
            fields["response_format"] = {
                "type": "json_schema",
                "json_schema": {"schema": form.json_schema},
            }
        elif form is not None:
            fields["response_format"] = {"type": form.type}
        return chat_body(fields, messages="input")


def _tool(tool: dict[str, Any], i: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise VLLMValidationError(
            f"tools of type {str(tool.get('type'))[:64]!r} are not supported, only functions",
            parameter=f"tools.{i}.type",
        )
    named = {k: tool[k] for k in ("name", "description", "parameters") if tool.get(k) is not None}
    return {"type": "function", "function": named}


def read_input(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The input's items as chat messages. Raises VLLMValidationError."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(given):
        kind = item.get("type", "message")
        if kind == "message":
            content = item.get("content")
            if isinstance(content, list):
                content = [_part(part, f"input.{i}.content.{j}") for j, part in enumerate(content)]
            messages.append({"role": item.get("role"), "content": content})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            last = messages[-1] if messages else {}
            if last.get("role") == "assistant":
                last.setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else json.dumps(output)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind != "reasoning":  # what was thought is over
            raise VLLMValidationError(
                f"input of type {str(kind)[:64]!r} is not supported", parameter=f"input.{i}.type"
            )
    return messages


def _part(part: Any, at: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("input_text", "output_text", "text") or not isinstance(part.get("text"), str):
        raise VLLMValidationError(
            f"content of type {str(kind)[:64]!r} is not supported, only text",
            parameter=f"{at}.type",
        )
    return {"type": "text", "text": part["text"]}
