"""Where the programs find the server: `.env`, the environment, and flags, the last one winning."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from dotenv import dotenv_values

NAMES = {
    "OPENAI_API_KEY": "api_key",
    "DEFAULT_MODEL": "model",
    "DEFAULT_HOST": "host",
    "DEFAULT_PORT": "port",
    "DEFAULT_DEVICE": "device",
    "SERVER_CONFIG_PATH": "server_config",
}


@dataclass(frozen=True)
class Settings:
    """`model` None: the first that the server lists. `server_config`: a YAML of `vllm serve`."""

    api_key: str = "EMPTY"
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    device: str | None = None
    server_config: str | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"


def read(path: str = ".env") -> Settings:
    """Settings from the file, if there is one, and the environment over it. Raises ValueError."""
    given = {name: value for name, value in dotenv_values(path).items() if name in NAMES}
    given |= {name: os.environ[name] for name in NAMES if name in os.environ}
    values = {NAMES[name]: value for name, value in given.items() if value}
    try:
        port = int(values.pop("port", None) or Settings.port)
    except ValueError:
        raise ValueError(f"DEFAULT_PORT must be a number, not {given['DEFAULT_PORT']!r}") from None
    return Settings(port=port, **values)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags by which every program may be sent to another server."""
    settings = read()
    parser.add_argument("--base-url", default=settings.url, help="The server's /v1.")
    parser.add_argument("--api-key", default=settings.api_key)
    parser.add_argument("--model", default=settings.model, help="Default: the server's first.")
