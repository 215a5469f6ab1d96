"""OpenTelemetry: a span for each request to the engine, by vLLM's names.

A client's `traceparent` is the span's parent. The SDK is an optional dependency, imported by those
who trace.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import SpanProcessor

SPAN = "llm_request"
PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"  # http/protobuf, or grpc with its package


def make_tracer(endpoint: str, model: str) -> Tracer:
    """A tracer that sends to a collector. Raises ValueError when its packages are not installed."""
    protocol = os.environ.get(PROTOCOL, "http/protobuf")
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        elif protocol == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        else:
            raise ValueError(f"{PROTOCOL} must be http/protobuf or grpc, not {protocol!r}")
    except ImportError as error:
        raise ValueError(
            "otlp_traces_endpoint needs opentelemetry-sdk and an exporter, "
            f"opentelemetry-exporter-otlp-proto-{protocol.partition('/')[0]}: {error}"
        ) from error
    return Tracer(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), model)


class Tracer:
    """Follows requests. `close` sends what is left."""

    def __init__(self, processor: SpanProcessor, model: str) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._model = model
        name = os.environ.get("OTEL_SERVICE_NAME", "vllm")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vllm")

    def within(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Spans that begin in here, and in tasks made in here, are the client's span's children."""
        return _within(headers)

    async def follow(
        self,
        request_id: str,
        params: SamplingParams,
        outputs: AsyncIterator[RequestOutput],
    ) -> AsyncGenerator[RequestOutput, None]:
        """The same outputs; the span ends with them, or with their consumer's leaving."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(SPAN, kind=SpanKind.SERVER, start_time=time.time_ns())
        span.set_attributes(_asked(request_id, params, self._model))
        last: RequestOutput | None = None
        try:
            async for last in outputs:
                yield last
        except Exception as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            if last is not None:
                span.set_attributes(_told(last))
            span.end()
            close = getattr(outputs, "aclose", None)
            if close is not None:
                await close()

    def close(self) -> None:
        self._provider.shutdown()


@contextmanager
def _within(headers: Mapping[str, str]) -> Iterator[None]:
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = context.attach(TraceContextTextMapPropagator().extract(headers))
    try:
        yield
    finally:
        context.detach(token)


def _asked(request_id: str, params: SamplingParams, model: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "gen_ai.response.model": model,
        "gen_ai.request.id": request_id,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.n": params.n,
    }
    if params.max_tokens is not None:
        told["gen_ai.request.max_tokens"] = params.max_tokens
    return told


def _told(last: RequestOutput) -> dict[str, Any]:
    """Tokens, and seconds where they are known."""
    told: dict[str, Any] = {
        "gen_ai.usage.prompt_tokens": len(last.prompt_token_ids or ()),
        "gen_ai.usage.cached_tokens": last.num_cached_tokens or 0,
        "gen_ai.usage.num_sequences": len(last.outputs),
    }
    reasons = [output.finish_reason for output in last.outputs if output.finish_reason]
    if reasons:
        told["gen_ai.response.finish_reasons"] = reasons
    stats = last.metrics
    if stats is not None and stats.first_token_ts > 0:
        told["gen_ai.usage.completion_tokens"] = stats.num_generation_tokens
        told["gen_ai.latency.time_in_queue"] = stats.scheduled_ts - stats.queued_ts
        told["gen_ai.latency.time_to_first_token"] = stats.first_token_ts - stats.arrival_time
        told["gen_ai.latency.e2e"] = stats.last_token_ts - stats.arrival_time
        told["gen_ai.latency.time_in_model_prefill"] = stats.first_token_ts - stats.scheduled_ts
        told["gen_ai.latency.time_in_model_decode"] = stats.last_token_ts - stats.first_token_ts
        told["gen_ai.latency.time_in_model_inference"] = stats.last_token_ts - stats.scheduled_ts
    return told
