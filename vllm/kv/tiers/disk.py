"""The disk tier: one file a block, found again after a restart.

    root/<fingerprint, 16 hex>/<2 hex of the key>/<key, 64 hex>

    header, 4,096 bytes: magic, version, key, fingerprint, payload length, CRC-32 of the payload,
                         CRC-32 of the header so far
    payload

A file is written aside, under a name that no reader looks for, and renamed when it is whole, so
that a reader finds all of it or nothing. Files are 0600 in folders of 0700. What is read is checked
against key, fingerprint, length and checksum; anything else counts as not being there and is
deleted. There is no fsync: a file that a crash leaves incomplete fails its checksum.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from vllm.kv.lineage import Key

logger = logging.getLogger(__name__)

MAGIC, VERSION = b"VLLMKV\0\0", 1
HEADER = struct.Struct("<8sI32s32sQI")
HEADER_BYTES = 4096  # one page: what direct I/O wants payloads aligned to
ASIDE = ".new-"
WRITE_SECONDS = 60.0  # what was set aside earlier than that is left over from a crash


class DiskTier:
    """Blobs of `block_bytes` under `root`, for caches of this `fingerprint` only."""

    name = "disk"
    in_memory = False

    def __init__(self, root: Path, block_bytes: int, fingerprint: bytes) -> None:
        """Raises OSError when the folder cannot be made or written."""
        self._bytes = block_bytes
        self._fingerprint = fingerprint
        self._folder = root / fingerprint.hex()[:16]
        _make_private(self._folder)
        self.damaged = 0
        self._buffers = threading.local()
        padded = -(-block_bytes // HEADER_BYTES) * HEADER_BYTES
        self.file_bytes = HEADER_BYTES + padded
        self.direct = self._probe_direct()

    def _probe_direct(self) -> bool:
        """Whether direct I/O works here: try it on a file of our own."""
        path = self._folder / f"{ASIDE}{secrets.token_hex(16)}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600)
        except OSError:
            return False
        try:
            with mmap.mmap(-1, HEADER_BYTES) as page:
                return os.write(descriptor, page) == HEADER_BYTES
        except OSError:
            return False
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()

    def _path(self, key: Key) -> Path:
        name = key.hex()
        return self._folder / name[:2] / name

    def scan(self) -> Iterator[tuple[Key, float]]:
        """(key, modification time) of every file of the right size; leftovers are deleted.

        Contents are checked when they are read, not here. Another engine may be writing meanwhile.
        """
        old = time.time() - WRITE_SECONDS
        for folder in sorted(self._folder.iterdir()):
            if not folder.is_dir():
                with contextlib.suppress(OSError):
                    if folder.name.startswith(ASIDE) and folder.stat().st_mtime < old:
                        folder.unlink()
                continue
            for path in folder.iterdir():
                with contextlib.suppress(OSError, ValueError):
                    status = path.stat()
                    if path.name.startswith(ASIDE):
                        if status.st_mtime < old:
                            path.unlink()
                    elif status.st_size != self.file_bytes:
                        path.unlink()
                    elif len(path.name) == 64:
                        yield Key(bytes.fromhex(path.name)), status.st_mtime

    def contains(self, keys: list[Key]) -> list[bool]:
        return [self._path(key).is_file() for key in keys]

    def read(self, key: Key, buffer: memoryview) -> bool:
        path = self._path(key)
        flags = os.O_RDONLY | os.O_NOFOLLOW | (os.O_DIRECT if self.direct else 0)
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            return False
        whole = self._buffer()
        try:
            got = _read_all(descriptor, whole)
        finally:
            os.close(descriptor)
        payload = whole[HEADER_BYTES : HEADER_BYTES + self._bytes]
        if got != self.file_bytes or bytes(whole[: HEADER.size + 4]) != self._header(key, payload):
            logger.warning("%s is damaged or not ours; deleted", path.name[:16])
            self.damaged += 1
            self.delete(key)
            return False
        buffer[:] = payload
        return True

    def write(self, key: Key, buffer: memoryview) -> None:
        path = self._path(key)
        whole = self._buffer()
        whole[HEADER_BYTES : HEADER_BYTES + self._bytes] = buffer
        header = self._header(key, whole[HEADER_BYTES : HEADER_BYTES + self._bytes])
        whole[: len(header)] = header
        aside = path.parent / f"{ASIDE}{secrets.token_hex(16)}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(aside, flags | (os.O_DIRECT if self.direct else 0), 0o600)
            try:
                _write_all(descriptor, whole)
            finally:
                os.close(descriptor)
            os.rename(aside, path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise

    def delete(self, key: Key) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()

    def close(self) -> None:
        """Files stay; there is nothing else."""

    def _header(self, key: Key, payload: memoryview) -> bytes:
        head = HEADER.pack(MAGIC, VERSION, key, self._fingerprint, self._bytes, zlib.crc32(payload))
        return head + zlib.crc32(head).to_bytes(4, "little")

    def _buffer(self) -> memoryview:
        """This thread's aligned buffer of one file."""
        if not hasattr(self._buffers, "memory"):
            self._buffers.memory = mmap.mmap(-1, self.file_bytes)
        return memoryview(self._buffers.memory)


def _make_private(folder: Path) -> None:
    """The folder and those above it that are not there yet, for this user only."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _read_all(descriptor: int, buffer: memoryview) -> int:
    done = 0
    while done < len(buffer):
        got = os.readv(descriptor, [buffer[done:]])
        if got == 0:
            break
        done += got
    return done


def _write_all(descriptor: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        done += os.write(descriptor, buffer[done:])
