"""Keys, limits, request ids, CORS: what stands before the endpoints."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from .conftest import Connect, bearer
from .fake_engine import FakeEngine

OPEN = {"/health", "/ping", "/version"}
COMPLETE = {"prompt": "The code", "max_tokens": 1}


async def test_every_route_but_the_open_ones_needs_a_key(
    connect: Connect, engine: FakeEngine
) -> None:
    app = build_app(engine, ServerArgs(api_key=["secret"]))
    paths = {getattr(route, "path", "") for route in app.routes} | set(app.openapi()["paths"])
    assert {"/docs", "/openapi.json", "/metrics", "/v1/models"} <= paths
    client = connect(api_key=["secret"])
    for path in paths:
        for method in ("GET", "POST", "OPTIONS"):
            response = await client.request(method, path)
            if path in OPEN:
                assert response.status_code in (200, 405)
            else:
                assert response.status_code == 401, (method, path)
                assert response.json() == {"error": "Unauthorized"}


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/health/../v1/models", "/HEALTH"])
async def test_other_spellings_are_closed(connect: Connect, path: str) -> None:
    assert (await connect(api_key=["secret"]).get(path)).status_code == 401


async def test_any_key_opens(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-env")
    client = connect(api_key=["one", "two"])
    for key in ("one", "two", "from-env"):
        assert (await client.get("/v1/models", headers=bearer(key))).status_code == 200
    for headers in (
        bearer("three"),
        bearer(""),
        bearer("on"),
        {"Authorization": "one"},
        {"Authorization": "Basic one"},
        {"Authorization": "Bearer \xff"},
    ):
        response = await client.get(
            "/v1/models", headers=[(k, v.encode("latin-1")) for k, v in headers.items()]
        )
        assert response.status_code == 401, headers


async def test_without_keys_all_is_open(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).status_code == 200


async def test_a_root_path_opens_nothing(engine: FakeEngine) -> None:
    """Behind a proxy the path begins with the prefix; both router and guard take it off."""
    app = build_app(engine, ServerArgs(api_key=["secret"]))
    transport = httpx.ASGITransport(app=app, root_path="/health")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/health/v1/models")).status_code == 401
        assert (await client.get("/health/health")).status_code == 200


async def test_large_bodies_are_refused(client: httpx.AsyncClient) -> None:
    large = b'{"prompt": "' + b"a" * (8 << 20) + b'"}'
    headers = {"content-type": "application/json"}
    told = await client.post("/v1/completions", content=large, headers=headers)
    assert told.status_code == 413
    assert told.json()["error"]["code"] == 413

    async def chunks() -> Any:
        for at in range(0, len(large), 1 << 20):
            yield large[at : at + (1 << 20)]

    unsaid = await client.post("/v1/completions", content=chunks(), headers=headers)
    assert unsaid.status_code == 413
    assert unsaid.json()["error"]["code"] == 413


async def test_a_body_that_is_said_to_be_large_is_not_read(client: httpx.AsyncClient) -> None:
    async def body() -> Any:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-type": "application/json", "content-length": str(9 << 20)}
    response = await client.post("/v1/completions", content=body(), headers=headers)
    assert response.status_code == 413


async def test_large_headers_are_refused(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health", headers={"x": "a" * 40000})).status_code == 431
    many = {f"x-{i}": "1" for i in range(120)}
    assert (await client.get("/health", headers=many)).status_code == 431


@pytest.mark.parametrize("given", ["my-id.1_2", "a" * 128])
async def test_a_request_id_is_honoured(
    client: httpx.AsyncClient, engine: FakeEngine, given: str
) -> None:
    for body, headers in (
        (COMPLETE, {"X-Request-Id": given}),
        (COMPLETE | {"request_id": given}, {}),
    ):
        answer = await client.post("/v1/completions", json=body, headers=headers)
        assert answer.json()["id"] == f"cmpl-{given}"
        assert "x-request-id" not in answer.headers
    ids = [a.request_id for a in engine.asked]
    assert len(set(ids)) == 2, "the engine's ids are unique even if the clients' are not"
    assert all(given in i for i in ids)


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "x\ny", "é", "../../etc"])
async def test_a_bad_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.post("/v1/completions", json=COMPLETE | {"request_id": given})
    assert answer.status_code == 200
    assert given == "" or given not in answer.json()["id"]


async def test_responses_carry_the_id_when_asked(connect: Connect) -> None:
    client = connect(enable_request_id_headers=True)
    answer = await client.post("/v1/completions", json=COMPLETE | {"request_id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    health = await client.get("/health", headers={"X-Request-Id": "other"})
    assert health.headers["x-request-id"] == "other"
    made = await client.get("/health", headers={"X-Request-Id": "not ok"})
    assert len(made.headers["x-request-id"]) == 32


async def test_cors_is_off_unless_asked(client: httpx.AsyncClient, connect: Connect) -> None:
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert (
        "access-control-allow-origin"
        not in (await client.options("/v1/models", headers=asks)).headers
    )
    client = connect(allowed_origins=['["https://a.example"]'], api_key=["secret"])
    preflight = await client.options("/v1/models", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    other = await client.options("/v1/models", headers=asks | {"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


async def test_docs_can_be_left_out(client: httpx.AsyncClient, connect: Connect) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert (await client.get(path)).status_code == 200
        assert (await connect(disable_fastapi_docs=True).get(path)).status_code == 404
