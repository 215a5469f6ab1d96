"""Administrative endpoints: who may use them, what they ask of the engine, what they never tell."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from vllm.entrypoints.openai.admin import _plain
from vllm.observe.metrics import Metrics

from .conftest import Connect, bearer
from .fake_engine import FakeEngine

ROUTES = [
    ("POST", "/reset_prefix_cache"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("GET", "/is_sleeping"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
    ("POST", "/collective_rpc"),
    ("GET", "/server_info"),
]
BODY = {"method": "check_health"}


async def call(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str] | None = None
) -> int:
    json = BODY if path == "/collective_rpc" else None
    return (await client.request(method, path, headers=headers, json=json)).status_code


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_who_may(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    monkeypatch.delenv("VLLM_SERVER_DEV_MODE", raising=False)
    assert await call(connect(), method, path) == 404, "it is not there unless it is asked for"
    alone = connect(admin_api_key=["boss"])
    assert await call(alone, method, path) == 401
    assert await call(alone, method, path, bearer("bos")) == 401
    assert await call(alone, method, path, bearer("boss")) == 200
    assert await call(alone, "GET", "/v1/models") == 200, "other routes are as open as before"
    both = connect(admin_api_key=["boss"], api_key=["user"])
    assert await call(both, method, path, bearer("user")) == 401
    assert await call(both, method, path, bearer("boss")) == 200
    assert await call(both, "GET", "/v1/models", bearer("user")) == 200
    assert await call(both, "GET", "/v1/models", bearer("boss")) == 200
    assert await call(both, "GET", "/v1/models") == 401
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    assert await call(connect(), method, path) == 200
    keyed = connect(api_key=["user"])
    assert await call(keyed, method, path) == 401
    assert await call(keyed, method, path, bearer("user")) == 200
    assert await call(alone, method, path) == 401, "an admin key beats the developer's mode"


@pytest.fixture
def admin(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> httpx.AsyncClient:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    return connect()


async def test_what_is_asked_of_the_engine(admin: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await admin.post("/reset_prefix_cache")).json() == {"success": True}
    await admin.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    assert (await admin.post("/reset_prefix_cache")).json() == {"success": False}
    flags = "reset_running_requests=true&reset_external=true"
    assert (await admin.post(f"/reset_prefix_cache?{flags}")).json() == {"success": True}
    await admin.post("/sleep")
    assert (await admin.get("/is_sleeping")).json() == {"is_sleeping": True}
    await admin.post("/wake_up?tags=weights&tags=kv_cache")
    assert (await admin.get("/is_sleeping")).json() == {"is_sleeping": True}
    await admin.post("/wake_up")
    assert (await admin.get("/is_sleeping")).json() == {"is_sleeping": False}
    await admin.post("/sleep?level=2&mode=keep")
    assert engine.told == [
        ("reset_prefix_cache", False, False),
        ("reset_prefix_cache", False, False),
        ("reset_prefix_cache", True, True),
        ("sleep", 1, "abort"),
        ("wake_up", ["weights", "kv_cache"]),
        ("wake_up", None),
        ("sleep", 2, "keep"),
    ]
    assert (await admin.post("/start_profile")).json() == {"folder": "/profiles"}
    assert (await admin.post("/stop_profile")).json() == {"file": "/profiles/1.json"}
    body = {"method": "f", "args": [1], "kwargs": {"a": 2}}
    assert (await admin.post("/collective_rpc", json=body)).json() == {
        "results": [["f", 1, {"a": 2}]]
    }


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/sleep?level=3", None, "level"),
        ("/sleep?level=x", None, "level"),
        ("/sleep?mode=now", None, "mode"),
        ("/reset_prefix_cache?reset_external=perhaps", None, "reset_external"),
        ("/collective_rpc", {}, "method"),
        ("/collective_rpc", {"method": "f", "timeout": -1}, "timeout"),
        ("/collective_rpc", {"method": "f", "args": 1}, "args"),
    ],
)
async def test_bad_requests(admin: httpx.AsyncClient, path: str, body: Any, param: str) -> None:
    response = await admin.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_call_that_takes_too_long(admin: httpx.AsyncClient) -> None:
    response = await admin.post("/collective_rpc", json={"method": "slow"})
    assert response.status_code == 504
    assert response.json()["error"]["param"] == "timeout"


async def test_server_info_shows_no_key(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(admin_api_key=["boss-secret"], api_key=["user-secret"])
    monkeypatch.setenv("VLLM_API_KEY", "env-secret")
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "7")
    for form in ("text", "json"):
        told = await client.get(f"/server_info?config_format={form}", headers=bearer("boss-secret"))
        assert "secret" not in told.text
        assert told.json()["vllm_env"]["VLLM_LOG_STATS_INTERVAL"] == "7"
    assert told.json()["vllm_config"]["cache"]["block_size"] == 16


def test_urls_are_shown_without_passwords() -> None:
    assert _plain({"a": ["redis://me:secret@host:1/0"]}) == {"a": ["redis://host:1/0"]}
    assert _plain("s3://bucket/a@b") == "s3://bucket/a@b"


async def test_the_gauge_of_sleep(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    client = connect(metrics=Metrics("demo"))

    async def state() -> list[str]:
        lines = (await client.get("/metrics")).text.splitlines()
        found = [line for line in lines if line.startswith("vllm:engine_sleep_state{")]
        assert len(found) == 3
        return [
            line.split('sleep_state="')[1].split('"')[0] for line in found if line[-3:] == "1.0"
        ]

    assert await state() == ["awake"]
    await client.post("/sleep")
    assert await state() == ["weights_offloaded"]
    await client.post("/sleep?level=2")
    assert await state() == ["discard_all"]
    await client.post("/wake_up?tags=weights")
    assert await state() == ["discard_all"]
    await client.post("/wake_up")
    assert await state() == ["awake"]


async def test_tokenizer_info(connect: Connect, engine: FakeEngine) -> None:
    assert (await connect().get("/tokenizer_info")).status_code == 404
    told = (await connect(enable_tokenizer_info_endpoint=True).get("/tokenizer_info")).json()
    assert engine.tokenizer is not None
    assert told["chat_template"] == engine.tokenizer.chat_template
    assert told["vocab_size"] == engine.tokenizer.vocab_size
    json.dumps(told)


async def test_load(connect: Connect, engine: FakeEngine) -> None:
    engine.delay = 0.05
    for tracked in (False, True):
        client = connect(enable_server_load_tracking=tracked)
        body = {"prompt": "a b", "max_tokens": 10}
        running = asyncio.create_task(client.post("/v1/completions", json=body))
        await asyncio.sleep(0.1)
        assert (await client.get("/load")).json() == {"server_load": int(tracked)}
        await running
        assert (await client.get("/load")).json() == {"server_load": 0}
