"""Requests made up from the OpenAPI document: no 5xx, and every refusal in the envelope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from .fake_engine import FakeEngine

EXAMPLES = 25  # an operation


@pytest.fixture(scope="module")
def made_up(tokenizer_folder: Path) -> Any:
    engine = FakeEngine(tokenizer=str(tokenizer_folder))
    engine.ends_after = 3
    args = ServerArgs(
        enable_tokenizer_info_endpoint=True,
        admin_api_key=["admin"],
        enable_auto_tool_choice=True,
        tool_call_parser="hermes",
    )
    return schemathesis.openapi.from_asgi("/openapi.json", build_app(engine, args))


def test_no_server_error_and_one_envelope(made_up: Any) -> None:
    operations = [found.ok() for found in made_up.get_all_operations()]
    assert {"POST /v1/completions", "POST /v1/messages", "POST /sleep"} <= {
        operation.label for operation in operations
    }
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def holds(case: schemathesis.Case) -> None:
            _check(case.call(headers={"Authorization": "Bearer admin"}), case)

        holds()


def _check(response: Any, case: schemathesis.Case) -> None:
    said = f"{case.operation.label} {case.body!r:.500}: {response.text[:500]}"
    assert response.status_code < 500, said
    if response.status_code < 400:
        return
    body = response.json()
    if case.path.startswith("/v1/messages"):
        assert body["type"] == "error", said
        assert set(body["error"]) == {"type", "message"}, said
        return
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, said
    assert error["code"] == response.status_code, said
    assert 0 < len(error["message"]) <= 1000, said
