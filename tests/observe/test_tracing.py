"""A span a request: its parent, its attributes, its end."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.entrypoints.openai.fake_engine import FakeEngine
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs
from vllm.observe.tracing import PROTOCOL, Tracer, make_tracer
from vllm.outputs import CompletionOutput, RequestOutput, RequestStateStats
from vllm.sampling_params import SamplingParams

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Tracer:
    return Tracer(SimpleSpanProcessor(spans), "demo")


@pytest.fixture
async def client(tracer: Tracer) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    engine = FakeEngine()
    app = build_app(engine, ServerArgs(), None, tracer)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client, engine


@pytest.mark.parametrize("stream", [False, True])
async def test_each_prompt_is_a_child_of_the_clients_span(
    client: Any, spans: InMemorySpanExporter, stream: bool
) -> None:
    body = {"prompt": ["a b", "c"], "max_tokens": 2, "temperature": 0.5, "stream": stream}
    sent = await asyncio.gather(
        client[0].post("/v1/completions", json=body, headers={"traceparent": PARENT}),
        client[0].post("/v1/completions", json=body | {"prompt": "d"}),
    )
    assert [response.status_code for response in sent] == [200, 200]
    found = spans.get_finished_spans()
    assert {span.name for span in found} == {"llm_request"}
    children = [span for span in found if span.parent is not None]
    assert len(children) == 2
    assert len(found) == 3
    for span in children:
        assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
        assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
        told = dict(span.attributes)
        assert told["gen_ai.request.temperature"] == 0.5
        assert told["gen_ai.request.max_tokens"] == 2
        assert told["gen_ai.request.id"].startswith("cmpl-")
        assert told["gen_ai.response.finish_reasons"] == ("length",)
        assert told["gen_ai.usage.prompt_tokens"] > 0
        assert span.end_time >= span.start_time


async def test_failures_are_told(client: Any, spans: InMemorySpanExporter) -> None:
    client[1].fails = RuntimeError("boom")
    assert (await client[0].post("/v1/completions", json={"prompt": "a"})).status_code == 500
    [span] = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.events[0].name == "exception"
    assert span.parent is None


async def test_times_and_a_consumer_that_leaves(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    stats = RequestStateStats(arrival_time=10.0)
    stats.queued_ts, stats.scheduled_ts = 10.5, 11.0
    stats.first_token_ts, stats.last_token_ts = 12.0, 15.0
    stats.num_generation_tokens = 7
    output = RequestOutput("r", None, [1, 2, 3], None, [CompletionOutput(0, "", [])], False)
    output.metrics, output.num_cached_tokens = stats, 2
    closed = []

    async def outputs() -> AsyncIterator[RequestOutput]:
        try:
            yield output
            yield output
        finally:
            closed.append(True)

    following = tracer.follow("r", SamplingParams(), outputs())
    assert await anext(following) is output
    await following.aclose()
    [span] = spans.get_finished_spans()
    told = dict(span.attributes or {})
    assert told["gen_ai.usage.completion_tokens"] == 7
    assert told["gen_ai.usage.cached_tokens"] == 2
    names = ["time_in_queue", "time_to_first_token", "e2e", "time_in_model_prefill"]
    names += ["time_in_model_decode", "time_in_model_inference"]
    assert [told[f"gen_ai.latency.{name}"] for name in names] == [0.5, 2.0, 5.0, 1.0, 3.0, 4.0]
    assert closed


def test_spans_reach_a_collector() -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracer = make_tracer(f"http://127.0.0.1:{server.server_port}/v1/traces", "demo")

        async def one() -> None:
            async def none() -> AsyncIterator[RequestOutput]:
                for output in ():
                    yield output

            assert [x async for x in tracer.follow("r", SamplingParams(), none())] == []

        asyncio.run(one())
        tracer.close()
        server.shutdown()
    [(path, data)] = got
    assert path == "/v1/traces"
    assert b"llm_request" in data


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROTOCOL, "smoke")
    with pytest.raises(ValueError, match="smoke"):
        make_tracer("http://x", "demo")
    monkeypatch.setenv(PROTOCOL, "grpc")
    with pytest.raises(ValueError, match="opentelemetry-exporter-otlp-proto-grpc"):
        make_tracer("http://x", "demo")
