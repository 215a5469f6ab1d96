"""`ServerArgs`: the HTTP server's arguments, as keywords, flags and YAML."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields

from vllm.config.flags import Flags, at_least, flag

TOOL_PARSERS = ("hermes", "llama3_json", "mistral")
REASONING_PARSERS = ("deepseek_r1", "deepseek_v3", "qwen3", "think")
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


@dataclass
class ServerArgs(Flags):
    """Every argument of the server. Raises ValueError for a value that cannot be used."""

    host: str = flag(
        "127.0.0.1", "Frontend", "Address to listen on; 0.0.0.0 lets other machines in."
    )
    port: int = flag(8000, "Frontend", "Port to listen on; 0 takes a free one.")
    uds: str | None = flag(None, "Frontend", "Unix socket to listen on, instead of host and port.")
    api_key: list[str] | None = flag(
        None,
        "Frontend",
        "Keys, any of which a client must show as a bearer token. The environment variable "
        "VLLM_API_KEY adds one.",
        many=True,
    )
    admin_api_key: list[str] | None = flag(
        None,
        "Frontend",
        "Keys, any of which opens the administrative endpoints (which exist with one, or with "
        "VLLM_SERVER_DEV_MODE=1) and all others.",
        many=True,
    )
    root_path: str = flag("", "Frontend", "Path prefix that a proxy strips from requests.")
    served_model_name: list[str] | None = flag(
        None, "Frontend", "Names that requests may call the model; the first is shown.", many=True
    )
    response_role: str = flag("assistant", "Frontend", "Role of chat answers.")
    ssl_keyfile: str | None = flag(None, "Frontend", "TLS key file.")
    ssl_certfile: str | None = flag(None, "Frontend", "TLS certificate file.")
    ssl_ca_certs: str | None = flag(None, "Frontend", "Certificates that clients' are checked by.")
    ssl_cert_reqs: int = flag(0, "Frontend", "Client certificates: 0 none, 1 optional, 2 required.")
    allowed_origins: list[str] | None = flag(
        None, "Frontend", "Origins that browsers may call from; without any, none may.", many=True
    )
    allowed_methods: list[str] | None = flag(
        None, "Frontend", "Methods that those origins may use; default all.", many=True
    )
    allowed_headers: list[str] | None = flag(
        None, "Frontend", "Headers that those origins may send; default all.", many=True
    )
    allow_credentials: bool = flag(False, "Frontend", "Let those origins send credentials.")
    middleware: list[str] | None = flag(
        None,
        "Frontend",
        "ASGI middleware classes, or coroutine functions of (request, call_next), as "
        "package.module.name; the last is the outermost.",
        many=True,
    )
    enable_server_load_tracking: bool = flag(
        False, "Frontend", "Let /load tell how many requests are being answered."
    )
    enable_tokenizer_info_endpoint: bool = flag(
        False, "Frontend", "Serve /tokenizer_info, which shows the chat template too."
    )
    enable_auto_tool_choice: bool = flag(
        False, "Frontend", "Let the model decide to call tools; needs tool_call_parser."
    )
    tool_call_parser: str | None = flag(
        None, "Frontend", "How the model writes tool calls.", choices=TOOL_PARSERS
    )
    reasoning_parser: str | None = flag(
        None,
        "Frontend",
        "How the model marks its thoughts, which answers then tell apart as reasoning.",
        choices=REASONING_PARSERS,
    )
    enable_request_id_headers: bool = flag(
        False, "Frontend", "Give each response an X-Request-Id header."
    )
    enable_force_include_usage: bool = flag(
        False, "Frontend", "Give usage in every stream, also when the client did not ask."
    )
    return_tokens_as_token_ids: bool = flag(
        False, "Frontend", "Write tokens in logprobs as token_id:N, so that none is ambiguous."
    )
    enable_per_request_metrics: bool = flag(
        False,
        "Frontend",
        "Tell in each answer, as metrics, how long it took to begin, to wait and to generate.",
    )
    enable_log_requests: bool = flag(False, "Frontend", "Log a line for each request.")
    enable_log_outputs: bool = flag(
        False, "Frontend", "And one for each output; needs enable_log_requests."
    )
    max_log_len: int | None = flag(
        None, "Frontend", "Most characters and token ids that such a line shows."
    )
    api_server_count: int = flag(
        1, "Refused", "One process answers HTTP; start several servers.", short="-asc"
    )
    trust_request_chat_template: bool = flag(
        False, "Refused", "Chat templates of requests are never run."
    )
    disable_log_requests: bool = flag(False, "No effect", "Requests are logged when asked for.")
    enable_prompt_tokens_details: bool = flag(
        False, "No effect", "Usage always tells the cached tokens."
    )
    chat_template_content_format: str = flag(
        "auto", "No effect", "Templates get contents as text.", choices=("auto", "string")
    )
    otlp_traces_endpoint: str | None = flag(
        None, "Frontend", "OpenTelemetry collector to send a span a request to."
    )
    uvicorn_log_level: str = flag(
        "info", "Frontend", "The web server's own log.", choices=LOG_LEVELS
    )
    disable_uvicorn_access_log: bool = flag(False, "Frontend", "No log line per HTTP request.")
    disable_access_log_for_endpoints: str | None = flag(
        None, "Frontend", "Nor for these paths: /health,/metrics."
    )
    disable_fastapi_docs: bool = flag(False, "Frontend", "No /docs, /redoc and /openapi.json.")
    shutdown_timeout: int = flag(
        30, "Frontend", "Seconds that running requests get to finish in after a signal to end."
    )

    def __post_init__(self) -> None:
        for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
            setattr(self, name, _listed(name, getattr(self, name)))
        for f in fields(self):
            if f.metadata["group"] == "Refused" and getattr(self, f.name) != f.default:
                raise ValueError(f"{f.name}: {f.metadata['help']}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, not {self.port}")
        if self.ssl_cert_reqs not in (0, 1, 2):
            raise ValueError(f"ssl_cert_reqs must be 0, 1 or 2, not {self.ssl_cert_reqs}")
        at_least(self, 0, "shutdown_timeout", "max_log_len")
        if self.enable_log_outputs and not self.enable_log_requests:
            raise ValueError("enable_log_outputs needs enable_log_requests")
        if not all(path.startswith("/") for path in self.silent_paths()):
            raise ValueError("disable_access_log_for_endpoints must be paths, /health,/metrics")
        if self.enable_auto_tool_choice and not self.tool_call_parser:
            raise ValueError("enable_auto_tool_choice needs tool_call_parser")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        for name in ("api_key", "admin_api_key"):
            if not all(getattr(self, name) or ["one"]):
                raise ValueError(f"{name} must not be empty")
        for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
            path = getattr(self, name)
            if path and not os.path.isfile(path):
                raise ValueError(f"{name}: there is no file {path}")

    def silent_paths(self) -> list[str]:
        """Those whose requests are not in the access log."""
        paths = (self.disable_access_log_for_endpoints or "").split(",")
        return [path.strip() for path in paths if path.strip()]

    def keys(self) -> list[str]:
        """All keys that open the server, the environment's included."""
        from_env = os.environ.get("VLLM_API_KEY")
        return (self.api_key or []) + ([from_env] if from_env else [])


def _listed(name: str, values: list[str] | None) -> list[str]:
    """Several values, or one that is a JSON list, as vLLM takes them."""
    if not values:
        return []
    if len(values) == 1 and values[0].startswith("["):
        try:
            values = json.loads(values[0])
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}: {error}") from None
    assert values is not None
    if not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name} must be strings")
    return values
