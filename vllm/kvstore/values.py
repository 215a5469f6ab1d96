"""Where whole values are kept by name: a Redis server, or whatever fsspec knows, S3 first of all.

Everything here raises OSError when the store is away or refuses, whatever its client raises.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

CONNECT, ANSWER = 2.0, 10.0  # seconds
REDIS = ("redis", "rediss", "unix")
REFUSED = ("http", "https", "data", "reference", "python")  # cannot be written, or are no stores


class Values(Protocol):
    """Byte strings by name (hex digits and slashes). To be called from several threads."""

    def get(self, name: str) -> bytes | None: ...
    def put(self, name: str, value: bytes) -> None: ...
    def there(self, names: list[str]) -> list[bool]: ...
    def remove(self, name: str) -> None: ...
    def clear(self, folder: str) -> None: ...
    def close(self) -> None: ...


def open_values(url: str) -> Values:
    """Raises ValueError for a URL of no store that is known or whose client is not installed."""
    scheme = urlsplit(url).scheme
    if scheme in REDIS:
        return RedisValues(url)
    if not scheme or "://" not in url or scheme in REFUSED:
        raise ValueError(
            f"{url!r} names no store: redis://..., s3://... or another that fsspec has"
        )
    return Objects(url)


@contextlib.contextmanager
def _as_oserror() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class Objects:
    """Objects of a filesystem of fsspec, in folders of two hex digits."""

    def __init__(self, url: str) -> None:
        try:
            fsspec: Any = importlib.import_module("fsspec")
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if urlsplit(url).scheme in ("s3", "s3a"):
                patience = {"connect_timeout": CONNECT, "read_timeout": ANSWER}
                options["config_kwargs"] = patience | {"retries": {"max_attempts": 2}}
            self._fs, root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url!r}: {error}") from error
        self._root = root.rstrip("/")

    def _path(self, name: str) -> str:
        folder, _, leaf = name.rpartition("/")
        return f"{self._root}/{folder}/{leaf[:2]}/{leaf}"

    def get(self, name: str) -> bytes | None:
        with _as_oserror():
            try:
                value: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return value

    def put(self, name: str, value: bytes) -> None:
        with _as_oserror():
            path = self._path(name)
            try:
                self._fs.pipe_file(path, value)
            except FileNotFoundError:  # where folders are real
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, value)

    def there(self, names: list[str]) -> list[bool]:
        with _as_oserror():
            found = [False] * len(names)
            for i, name in enumerate(names):  # nobody asks for what stands behind one that is not
                found[i] = bool(self._fs.exists(self._path(name)))
                if not found[i]:
                    break
            return found

    def remove(self, name: str) -> None:
        with _as_oserror(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def clear(self, folder: str) -> None:
        with _as_oserror(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{folder}", recursive=True)

    def close(self) -> None:
        """Connections are the library's own."""


class RedisValues:
    """Values of a Redis server, whose `maxmemory` and `allkeys-lru` bound them."""

    PREFIX = "vllm-kv:"

    def __init__(self, url: str) -> None:
        try:
            redis: Any = importlib.import_module("redis")
            self._redis = redis.Redis.from_url(
                url, socket_connect_timeout=CONNECT, socket_timeout=ANSWER
            )
        except (ImportError, ValueError) as error:
            raise ValueError(f"{urlsplit(url).scheme}://...: {error}") from error

    def get(self, name: str) -> bytes | None:
        with _as_oserror():
            value: bytes | None = self._redis.get(self.PREFIX + name)
            return value

    def put(self, name: str, value: bytes) -> None:
        with _as_oserror():
            self._redis.set(self.PREFIX + name, value)

    def there(self, names: list[str]) -> list[bool]:
        with _as_oserror(), self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(self.PREFIX + name)
            return [bool(count) for count in pipe.execute()]

    def remove(self, name: str) -> None:
        with _as_oserror():
            self._redis.delete(self.PREFIX + name)

    def clear(self, folder: str) -> None:
        with _as_oserror():
            for name in self._redis.scan_iter(match=f"{self.PREFIX}{folder}/*", count=1000):
                self._redis.delete(name)

    def close(self) -> None:
        with contextlib.suppress(OSError), _as_oserror():
            self._redis.close()
