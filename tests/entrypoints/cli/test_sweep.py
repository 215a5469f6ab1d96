"""`bench sweep` with small programs in place of server and benchmark; `bench startup` for real."""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm.entrypoints.cli import main
from vllm.entrypoints.cli.bench_sweep import _name, _url, command
from vllm.entrypoints.cli.bench_sweep_plot import lines

SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
open(sys.argv[1], "a").write("x")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), Answer).serve_forever()
"""
BENCH = """
import json, pathlib, sys
words = [word for word in sys.argv[1:] if word != "--save-result"]
flags = dict(zip(words[::2], words[1::2]))
if flags.get("--rate") == "3": sys.exit("no such rate")
path = pathlib.Path(flags["--result-dir"], flags["--result-filename"])
path.write_text(json.dumps({"rate": flags.get("--rate"), "x": 1.5, "list": [1]}))
"""


def test_settings_become_flags() -> None:
    settings = {"_benchmark_name": "x", "max_num_seqs": 3, "a": True, "b": False, "c": [1, "d"]}
    words = command("serve me", settings | {"hf_overrides": {"e": 1}, "none": None})
    flags = "--max-num-seqs 3 --a --no-b --c 1 d --hf-overrides".split()
    assert words == ["serve", "me", *flags, '{"e": 1}']
    assert command("vllm serve", {})[0] == sys.executable


def test_names_are_safe() -> None:
    assert _name({}) == "default"
    assert _name({"a": "../../x", "b": 1}) == "a=.._.._x-b=1"
    assert _name({"_benchmark_name": "../.."}) == "_.."
    assert _name({"_benchmark_name": ".."}) == "_"
    assert len(_name({"a": "x" * 999})) == 200


def test_where_the_server_is() -> None:
    assert _url(["vllm", "serve"]) == "http://127.0.0.1:8000/health"
    assert _url("s --host 0.0.0.0 --port=81".split()) == "http://127.0.0.1:81/health"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "bench.py").write_text(BENCH)
    serve = [sys.executable, str(tmp_path / "server.py"), str(tmp_path / "starts")]
    words = ["bench", "sweep", "serve", "--serve-cmd", shlex.join([*serve, "--port", str(port)])]
    words += ["--bench-cmd", shlex.join([sys.executable, str(tmp_path / "bench.py")])]
    return [*words, "-o", str(tmp_path / "out"), "--num-runs", "2"]


def in_file(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def test_a_sweep(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words += ["--bench-params", in_file(tmp_path / "b.json", [{"rate": 1}, {"rate": 2}])]
    assert main.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("bench.py") == 4
    assert not (tmp_path / "out").exists()
    assert main.main(words) == 0
    [folder] = (tmp_path / "out").iterdir()
    assert len(list(folder.rglob("run=*.json"))) == 4
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run_number"], row["rate"]) for row in rows] == [
        *(("0", "1"), ("1", "1"), ("0", "2"), ("1", "2"))
    ]
    assert json.loads((folder / "summary.json").read_text())["runs"][0]["list"] == [1]
    assert (tmp_path / "starts").read_text() == "x"
    next(folder.rglob("run=1.json")).unlink()
    assert main.main([*words, "--resume", folder.name]) == 0
    assert len(list(folder.rglob("run=*.json"))) == 4
    assert main.main([*words, "--resume", folder.name]) == 0
    assert (tmp_path / "starts").read_text() == "xx", "nothing was due, so no server was"


def test_a_plot(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words += ["--bench-params", in_file(tmp_path / "b.json", [{"rate": 1}, {"rate": 2}])]
    assert main.main(words) == 0
    [folder] = (tmp_path / "out").iterdir()
    plot = ["bench", "sweep", "plot", str(folder), "--var-x", "rate"]
    assert main.main([*plot, "--var-y", "x", "--fig-name", "mine"]) == 0
    assert (folder / "mine.png").read_bytes()[:4] == b"\x89PNG"
    assert "rate" in (folder / "mine.svg").read_text()
    for more, says in ((["--var-y", "none"], "'none'"), (["--var-y", "list"], "no number")):
        with pytest.raises(SystemExit):
            main.main([*plot, *more])
        assert says in capsys.readouterr().err


def test_a_point_is_the_mean_of_a_settings_runs() -> None:
    rows = [
        {"benchmark": name, "seqs": seqs, "rate": rate, "ms": ms}
        for name, seqs, rate, ms in (
            ("b", 8, 2, 30.0),
            ("a", 8, 1, 10.0),
            ("a", 8, 1, 14.0),
            ("c", 9, 1, 5.0),
        )
    ]
    asked = argparse.Namespace(var_x="rate", var_y="ms", curve_by=["seqs"])
    assert lines(rows, asked) == {"seqs=8": [(1.0, 12.0), (2.0, 30.0)], "seqs=9": [(1.0, 5.0)]}


def test_a_run_that_fails(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words += [
        "--bench-params",
        in_file(tmp_path / "b.json", {"slow": {"rate": 1}, "x": {"rate": 3}}),
    ]
    assert main.main(words) == 1
    assert "no such rate" in capsys.readouterr().err
    assert len(list((tmp_path / "out").rglob("slow/run=*.json"))) == 2


@pytest.mark.parametrize("value", [3, [], [3], "{"])
def test_bad_settings(
    words: list[str], tmp_path: Path, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(SystemExit):
        main.main([*words, "--bench-params", str(path)])
    assert "b.json" in capsys.readouterr().err


def test_a_server_that_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "sweep", "serve", "--serve-cmd", f"{sys.executable} -c 1", "--bench-cmd", "x"]
    with pytest.raises(SystemExit):
        main.main([*words, "-o", str(tmp_path)])
    assert "ended with 0 before it was ready" in capsys.readouterr().err


def test_startup(tmp_path: Path) -> None:
    words = ["bench", "startup", "--num-iters-cold", "1", "--num-iters-warm", "1"]
    words += ["--num-iters-warmup", "0", "--kv-cache-memory-bytes", "16M"]
    assert main.main([*words, "--output-json", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert set(told) == {"cold_total", "cold_engine", "warm_total", "warm_engine"}
    assert told["warm_total"]["mean"] > told["warm_engine"]["mean"] > 0
