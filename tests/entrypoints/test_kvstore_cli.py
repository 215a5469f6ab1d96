"""`vllm kvstore gc|stat|verify` on a folder of files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.kvstore.daemon import InThread
from vllm.entrypoints.cli.kvstore import main
from vllm.kvstore import FileCacheConfig, KVCache


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with KVCache(FileCacheConfig(chunk_size=1, root=tmp_path), tensor_nbytes=64) as cache:
        for i in range(5):
            assert cache.put(bytes([i]) * 32, np.full(128, i, np.uint8))
    return tmp_path


def chunks(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if len(path.name) == 64)


def test_stat(root, capsys):
    assert main(["stat", str(root)]) == 0
    size = sum(path.stat().st_size for path in chunks(root))
    assert json.loads(capsys.readouterr().out) == {"entries": 5, "bytes": size}


def test_stat_of_a_daemon(tmp_path, capsys):
    daemon = InThread(tmp_path / "run" / "kv.sock", 1 << 20, 4096)
    assert main(["stat", str(daemon.socket)]) == 0
    assert json.loads(capsys.readouterr().out)["capacity_bytes"] > 0
    daemon.stop()


def test_verify_finds_damage_and_mends_it(root, capsys):
    assert main(["verify", str(root)]) == 0
    one, two, *_ = chunks(root)
    data = bytearray(one.read_bytes())
    data[4096] ^= 1
    one.write_bytes(data)
    two.write_bytes(two.read_bytes()[:-1])
    assert main(["verify", str(root)]) == 1
    assert "2 damaged" in capsys.readouterr().out and len(chunks(root)) == 5
    assert main(["verify", str(root), "--repair"]) == 0
    assert main(["verify", str(root)]) == 0 and len(chunks(root)) == 3


def test_gc_by_age_by_size_and_of_dead_writers(root, capsys):
    old, *rest = chunks(root)
    os.utime(old, (0, 0))
    (old.parent / ".new-0123").write_bytes(b"left")
    assert main(["gc", str(root), "--ttl", "1000"]) == 0
    assert chunks(root) == rest and not list(root.rglob(".new-*"))
    assert "2 files deleted" in capsys.readouterr().out
    size = rest[0].stat().st_size
    assert main(["gc", str(root), "--quota", str(2 * size + 1)]) == 0
    assert len(chunks(root)) == 2
    assert main(["gc", str(root)]) == 0 and len(chunks(root)) == 2


@pytest.mark.parametrize("command", ["gc", "stat", "verify"])
def test_a_folder_that_is_not_there_is_an_error(tmp_path, command, capsys):
    assert main([command, str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err and not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    assert main([command, str(tmp_path / "file")]) == 2


def test_a_negative_age_is_an_error(root):
    with pytest.raises(SystemExit):
        main(["gc", str(root), "--ttl", "-1"])
    assert len(chunks(root)) == 5
