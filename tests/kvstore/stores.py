"""Stores of values on the loopback, for tests: S3 by moto, Redis by fakeredis."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from fakeredis import TcpFakeServer
from moto.server import ThreadedMotoServer


@contextmanager
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    bucket = f"kv-{secrets.token_hex(8)}"  # all servers of a process have one state
    boto3.client("s3").create_bucket(Bucket=bucket)
    try:
        yield f"s3://{bucket}/some/prefix"
    finally:
        server.stop()


class Redis:
    """A Redis on the loopback, or on another address of this machine, in this process."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._server = TcpFakeServer((host, 0), server_type="redis")
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_address[1]}"
        self.url = f"redis://{self.address}/0"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextmanager
def redis() -> Iterator[str]:
    server = Redis()
    try:
        yield server.url
    finally:
        server.close()


def secret(folder: Path) -> Path:
    """What hosts share, in a file."""
    path = folder / "secret"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return path
