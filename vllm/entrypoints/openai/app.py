"""The application: endpoint families, each a file with a `router`, behind the guards."""

from __future__ import annotations

import importlib
import inspect
import os

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from vllm.engine.client import EngineClient
from vllm.entrypoints.openai import (
    absent,
    admin,
    anthropic,
    chat,
    completions,
    errors,
    health,
    invocations,
    models,
    responses,
    sessions,
    tokenize,
    tokenizer_info,
)
from vllm.entrypoints.openai.guard import Keys, Limits, RequestIds, Traces
from vllm.entrypoints.openai.keys import Unauthorized, unauthorized
from vllm.entrypoints.openai.state import Server
from vllm.entrypoints.server_args import ServerArgs
from vllm.observe.metrics import Metrics
from vllm.observe.tracing import Tracer
from vllm.version import __version__

# The most used come first: a request is matched against one route after the other.
FAMILIES = (
    completions,
    chat,
    responses,
    anthropic,
    tokenize,
    models,
    health,
    sessions,
    invocations,
)


def build_app(
    engine: EngineClient,
    args: ServerArgs,
    metrics: Metrics | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """An app that serves the engine. All of its state is at `app.state.server`.

    metrics: what /metrics shows of the engine, which records there; None for an engine without.
    tracer: follows requests, where spans are wanted.
    """
    docs = not args.disable_fastapi_docs
    app = FastAPI(
        title="vllm",
        version=__version__,
        openapi_url="/openapi.json" if docs else None,
        docs_url="/docs" if docs else None,
        redoc_url="/redoc" if docs else None,
    )
    app.state.server = Server(engine, args, metrics, tracer)
    errors.install(app)
    app.add_exception_handler(Unauthorized, _unauthorized)
    for family in FAMILIES:
        app.include_router(family.router)
    app.include_router(absent.router)
    if args.enable_tokenizer_info_endpoint:
        app.include_router(tokenizer_info.router)
    admin_keys = args.admin_api_key or []
    if admin_keys or os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
        app.include_router(admin.router)
    for name in args.middleware or []:
        _add_middleware(app, name)
    # The last one added is the outermost: a browser's preflight carries no key.
    keys = args.keys()
    if keys:
        app.add_middleware(Keys, keys=keys + admin_keys)
    app.add_middleware(Limits)
    if tracer is not None:
        app.add_middleware(Traces, tracer=tracer)
    if args.enable_request_id_headers:
        app.add_middleware(RequestIds)
    if args.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=args.allowed_origins,
            allow_methods=args.allowed_methods or ["*"],
            allow_headers=args.allowed_headers or ["*"],
            allow_credentials=args.allow_credentials,
        )
    return app


async def _unauthorized(request: Request, error: Exception) -> Response:
    return unauthorized()


def _add_middleware(app: FastAPI, name: str) -> None:
    """A class of ASGI middleware, or a function of (request, call_next). Raises ValueError."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"middleware: {name!r} cannot be imported: {error}") from error
    if inspect.isclass(found):
        app.add_middleware(found)
    elif inspect.iscoroutinefunction(found):
        app.middleware("http")(found)
    else:
        raise ValueError(f"middleware: {name!r} is neither a class nor a coroutine function")


def routes(app: FastAPI) -> list[str]:
    """Each path with its methods, for the log at start."""
    listed = []
    for path, methods in app.openapi()["paths"].items():
        listed.append(f"{', '.join(m.upper() for m in methods)} {path}")
    return listed
