"""The application: endpoint families, each a file with a `router`, behind the guards."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from vllm.engine.client import EngineClient
from vllm.entrypoints.openai import (
    anthropic,
    chat,
    completions,
    errors,
    health,
    models,
    responses,
    sessions,
    tokenize,
)
from vllm.entrypoints.openai.guard import Keys, Limits, RequestIds
from vllm.entrypoints.openai.state import Server
from vllm.entrypoints.server_args import ServerArgs
from vllm.observe.metrics import Metrics
from vllm.version import __version__

FAMILIES = (health, models, completions, chat, responses, anthropic, tokenize, sessions)


def build_app(engine: EngineClient, args: ServerArgs, metrics: Metrics | None = None) -> FastAPI:
    """An app that serves the engine. All of its state is at `app.state.server`.

    metrics: what /metrics shows of the engine, which records there; None for an engine without.
    """
    docs = not args.disable_fastapi_docs
    app = FastAPI(
        title="vllm",
        version=__version__,
        openapi_url="/openapi.json" if docs else None,
        docs_url="/docs" if docs else None,
        redoc_url="/redoc" if docs else None,
    )
    app.state.server = Server(engine, args, metrics)
    errors.install(app)
    for family in FAMILIES:
        app.include_router(family.router)
    # The last one added is the outermost: a browser's preflight carries no key.
    keys = args.keys()
    if keys:
        app.add_middleware(Keys, keys=keys)
    app.add_middleware(Limits)
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


def routes(app: FastAPI) -> list[str]:
    """Each path with its methods, for the log at start."""
    listed = []
    for path, methods in app.openapi()["paths"].items():
        listed.append(f"{', '.join(m.upper() for m in methods)} {path}")
    return listed
