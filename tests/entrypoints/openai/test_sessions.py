"""Session verbs, and what requests may tell the cache, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .fake_engine import FakeEngine

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


async def test_verbs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for verb in ("pin", "demote", "prefetch", "release"):
        answer = await client.post(f"/v1/cache/sessions/my-chat/{verb}")
        assert answer.json() == {"session_id": "my-chat", "verb": verb, "cached_blocks": 3}
    await client.post("/v1/cache/sessions/x/pin", json={"ttl": 60, "cache_salt": "a"})
    assert engine.sessions[0] == ("my-chat", "pin", None, None)
    assert engine.sessions[-1] == ("x", "pin", 60.0, "a")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("x/burn", None),
        ("x/pin", {"ttl": -1}),
        ("x/pin", {"ttl": 1e12}),
        ("x/pin", {"tll": 5}),
        ("x/release", {"ttl": 5}),
        ("x/pin", {"cache_salt": ""}),
        ("x" * 129 + "/pin", None),
    ],
)
async def test_bad_verbs(client: httpx.AsyncClient, path: str, body: Any) -> None:
    answer = await client.post(f"/v1/cache/sessions/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_hints_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    told = {
        "kv_retention": [{"priority": 80, "ttl": 60}],
        "session_id": "s",
        "workload": "qa",
        "prefix_mode": "single",
    }
    await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1} | told)
    await client.post("/v1/chat/completions", json=CHAT | told)
    answer = await client.post("/v1/responses", json={"input": "a", "store": False} | told)
    assert answer.status_code == 200
    assert len(engine.asked) == 3
    for asked in engine.asked:
        assert {k: asked.prompt[k] for k in told} == told


async def test_headers_say_what_bodies_do_not(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Where prompts are taken; elsewhere they are nobody's business."""
    headers = {"X-Workload": "qa", "X-Prefix-Mode": "multi", "X-Session-Id": "s"}
    client.headers.update(headers)
    await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/responses", json={"input": "a", "store": False})
    assert (await client.post("/v1/messages", json=CHAT)).status_code == 200
    told = {"workload": "qa", "prefix_mode": "multi", "session_id": "s"}
    assert len(engine.asked) == 4
    for asked in engine.asked:
        assert {k: asked.prompt[k] for k in told} == told
    await client.post("/v1/chat/completions", json=CHAT | {"workload": "own"})
    assert engine.asked[-1].prompt["workload"] == "own"
    for path, body in (("/v1/cache/sessions/x/pin", {"ttl": 5}), ("/tokenize", {"prompt": "a"})):
        assert (await client.post(path, json=body)).status_code == 200


async def test_anthropics_marks(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    long = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {
        "max_tokens": 1,
        "system": [{"type": "text", "text": "rules"} | long],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"} | mark]}],
    }
    assert (await client.post("/v1/messages", json=body)).status_code == 200
    assert engine.asked[0].prompt["cache_control"] == long["cache_control"]
    bad = {"type": "text", "text": "a", "cache_control": {"type": "eternal"}}
    body["system"] = [bad]
    body["messages"] = [{"role": "user", "content": "a"}]
    answer = await client.post("/v1/messages", json=body)
    assert answer.status_code == 400 and "cache_control" in answer.text


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_retention", {"priority": 101}),
        ("kv_retention", "long"),
        ("cache_control", {"type": "eternal"}),
        ("session_id", "x" * 200),
    ],
)
async def test_bad_hints_are_refused(
    client: httpx.AsyncClient, path: str, field: str, value: Any
) -> None:
    prompt = {"completions": {"prompt": "a"}, "responses": {"input": "a"}}
    body = prompt.get(path.removeprefix("/v1/"), CHAT) | {field: value}
    answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"] + str(answer.json()["error"].get("param"))
