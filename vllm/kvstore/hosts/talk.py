"""Frames between hosts: a small JSON header and a payload, both bounded, the payload with a CRC-32.

Before the first frame both ends prove that they know the secret, without sending it (HMAC-SHA-256
over the nonces of both). What is sent is not encrypted: hosts trust their network to that extent.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import socket
import stat
import struct
import time
import zlib
from typing import Any

MAGIC = b"VKH1"
HEAD = struct.Struct("<4sIQI")  # magic, bytes of the header, of the payload, CRC of the payload
MAX_HEADER = 64 << 10
MAX_PAYLOAD = 256 << 20
SLOWEST = 20 << 20  # bytes a second; who is slower than this counts as cut off


class PeerError(Exception):
    """The other host is away, too slow, or not to be believed."""


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """At least 32 bytes from a file that only we can read. Raises ValueError, OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise OSError(error.errno, f"secret: {error.strerror}", os.fspath(path)) from None
    with open(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ValueError(f"secret: {path} must belong to this user and have mode 0600")
        secret = file.read(4097)
    if not 32 <= len(secret) <= 4096:
        raise ValueError(f"secret: {path} must hold 32 to 4096 bytes")
    return secret


def endpoint(name: str, text: str) -> tuple[str, int]:
    """HOST:PORT. Raises ValueError, which names the argument."""
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdigit() or not 0 <= int(port) < 65536:
        raise ValueError(f"{name} is HOST:PORT, not {text!r}")
    return host.strip("[]"), int(port)


class Line:
    """A connection to another host. Once a method raised PeerError it is of no more use."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._socket = connection
        self._patience = patience
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def connect(cls, address: tuple[str, int], secret: bytes, patience: float) -> Line:
        try:
            line = cls(socket.create_connection(address, timeout=patience), patience)
        except OSError as error:
            raise PeerError(str(error)) from None
        try:
            line._prove(secret, b"client", b"server")
        except PeerError:
            line.close()
            raise
        return line

    @classmethod
    def accept(cls, connection: socket.socket, secret: bytes, patience: float) -> Line:
        line = cls(connection, patience)
        line._prove(secret, b"server", b"client")
        return line

    def _prove(self, secret: bytes, ours: bytes, theirs: bytes) -> None:
        deadline = time.monotonic() + self._patience
        nonce = os.urandom(32)
        self._write(MAGIC + nonce, deadline)
        said = self._read(36, deadline)
        if said[:4] != MAGIC:
            raise PeerError("what answers is no host of this store")
        other = bytes(said[4:])
        if other == nonce:
            raise PeerError("our own nonce came back")
        self._write(_proof(secret, ours, nonce, other), deadline)
        if not hmac.compare_digest(self._read(32, deadline), _proof(secret, theirs, other, nonce)):
            raise PeerError("the other end does not know the secret")

    def send(self, header: dict[str, Any], *payload: Any) -> None:
        """`payload`: buffers of bytes, sent one behind the other."""
        text = json.dumps(header).encode()
        parts = [memoryview(part).cast("B") for part in payload]
        size, crc = sum(map(len, parts)), 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        deadline = time.monotonic() + self._patience + size / SLOWEST
        self._write(HEAD.pack(MAGIC, len(text), size, crc) + text, deadline)
        self._write_all(parts, deadline)

    def receive(self, wait: float | None = None) -> tuple[dict[str, Any], memoryview]:
        """Header and payload. `wait`: seconds until it begins, the patience if not given."""
        begins = time.monotonic() + (self._patience if wait is None else wait)
        magic, header_bytes, size, crc = HEAD.unpack(self._read(HEAD.size, begins))
        if magic != MAGIC or header_bytes > MAX_HEADER or size > MAX_PAYLOAD:
            raise PeerError("a frame that cannot be")
        deadline = time.monotonic() + self._patience + size / SLOWEST
        try:
            header = json.loads(bytes(self._read(header_bytes, deadline)))
        except ValueError:
            raise PeerError("a header that is no JSON") from None
        if not isinstance(header, dict):
            raise PeerError("a header that is no object")
        payload = self._read(size, deadline)
        if zlib.crc32(payload) != crc:
            raise PeerError("a payload that was damaged on its way")
        return header, payload

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _write(self, data: Any, deadline: float) -> None:
        view = memoryview(data)
        try:
            while view:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                view = view[self._socket.send(view) :]
        except OSError as error:
            raise PeerError(str(error)) from None

    def _write_all(self, parts: list[memoryview], deadline: float) -> None:
        """Many at a time: a token may be small."""
        at = 0
        try:
            while at < len(parts):
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                sent = self._socket.sendmsg(parts[at : at + 512])
                while at < len(parts) and sent >= len(parts[at]):
                    sent -= len(parts[at])
                    at += 1
                if sent:
                    parts[at] = parts[at][sent:]
        except OSError as error:
            raise PeerError(str(error)) from None

    def _read(self, size: int, deadline: float) -> memoryview:
        buffer = memoryview(bytearray(size))
        at = 0
        try:
            while at < size:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                got = self._socket.recv_into(buffer[at:])
                if got == 0:
                    raise PeerError("the connection ended")
                at += got
        except OSError as error:
            raise PeerError(str(error)) from None
        return buffer


def _proof(secret: bytes, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.new(secret, b"vllm-kvstore-host " + role + first + second, hashlib.sha256).digest()
