"""`vllm bench sweep serve|startup|plot`: a benchmark for each combination of settings."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm.config.flags import FlexibleArgumentParser
from vllm.entrypoints.cli import bench_sweep_plot
from vllm.entrypoints.cli.bench_data import write_json
from vllm.entrypoints.cli.command import positive, run

PROG = "vllm bench sweep"
Settings = dict[str, Any]  # flag, without dashes -> value


def main(words: Sequence[str]) -> int:
    parser = FlexibleArgumentParser(prog=PROG, description="A benchmark for each setting.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="bench serve, with servers started for it")
    add = serve.add_argument
    add("--serve-cmd", required=True, metavar="COMMAND", help="As vllm serve MODEL.")
    add("--bench-cmd", required=True, metavar="COMMAND", help="As vllm bench serve.")
    add("--serve-params", type=_settings, default=[{}], metavar="FILE", help="The servers'.")
    add("--bench-params", type=_settings, default=[{}], metavar="FILE", help="The benchmarks'.")
    add("--after-bench-cmd", metavar="COMMAND", help="Run after each, as to empty caches.")
    add("--server-ready-timeout", type=positive, default=300, metavar="S")
    _shared(serve)
    startup = commands.add_parser("startup", help="bench startup")
    startup.add_argument("--startup-cmd", default="vllm bench startup", metavar="COMMAND")
    startup.add_argument("--startup-params", type=_settings, default=[{}], metavar="FILE")
    _shared(startup)
    plot = commands.add_parser("plot", help="a plot of what a sweep has found")
    bench_sweep_plot.add_flags(plot)
    return run(parser, words, _sweep)


def _shared(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--num-runs", type=positive, default=3, metavar="N", help="Runs of each setting.")
    add("-o", "--output-dir", default="results", metavar="DIR")
    add("--resume", metavar="NAME", help="Go on in this folder of the output's; what is there is "
        "not run again.")  # fmt: skip
    add("--show-stdout", action="store_true", help="Show what the commands say.")
    add("--dry-run", action="store_true", help="Print the commands only.")


def _settings(path: str) -> list[Settings]:
    """JSON: a list of objects (flag: value), or an object of such objects by their names."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    if isinstance(value, dict):
        value = [{"_benchmark_name": name} | one for name, one in value.items()]
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value) or not value:
        raise argparse.ArgumentTypeError(f"{path}: must be a list of objects")
    return value


def command(text: str, settings: Settings) -> list[str]:
    """The command with these flags; true is the flag alone, false its --no- form."""
    words = shlex.split(text)
    if words[0] == "vllm":  # this one, whatever the path says
        words[:1] = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    for name, value in settings.items():
        if name == "_benchmark_name" or value is None:
            continue
        flag = "--" + name.lstrip("-").replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is False:
            words.append("--no-" + flag[2:])
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def _name(settings: Settings) -> str:
    """A folder's or file's: what is set, or `default`."""
    if "_benchmark_name" in settings:
        name = str(settings["_benchmark_name"])
    else:
        name = "-".join(f"{key}={value}" for key, value in settings.items()) or "default"
    return "".join(c if c.isalnum() or c in "=-_." else "_" for c in name)[:200].lstrip(".") or "_"


def _sweep(args: argparse.Namespace) -> int:
    if args.command == "plot":
        bench_sweep_plot.plot(args)
        return 0
    folder = Path(args.output_dir) / (args.resume or datetime.now().strftime("%Y%m%d_%H%M%S"))
    if args.resume and not folder.is_dir():
        raise ValueError(f"--resume: there is no folder {folder}")
    rows = _serve(args, folder) if args.command == "serve" else _startup(args, folder)
    if args.dry_run:
        return 0
    failed = [row for row in rows if "failed_with" in row]
    _write_summary(folder, rows)
    print(f"{len(rows) - len(failed)} runs, results in {folder}")
    for row in failed:
        print(f"{PROG}: error: {row['failed_with']}", file=sys.stderr)
    return 1 if failed else 0


def _serve(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A server for each of its settings; each benchmark so many times against it."""
    rows: list[dict[str, Any]] = []
    for server in args.serve_params:
        runs = [
            (setting, number, folder / _name(server) / _name(setting) / f"run={number}.json")
            for setting in args.bench_params
            for number in range(args.num_runs)
        ]
        serve = command(args.serve_cmd, server)
        if args.dry_run:
            print(shlex.join(serve))
        due = [path for _, _, path in runs if not path.is_file()]
        with _server(args, serve) if due and not args.dry_run else _nothing():
            for setting, number, path in runs:
                bench = command(args.bench_cmd, setting)
                bench += ["--save-result", "--result-dir", str(path.parent)]
                bench += ["--result-filename", path.name]
                if args.dry_run:
                    print(shlex.join(bench))
                    continue
                rows.append(_run(args, bench, folder, path, server | setting, number))
                if args.after_bench_cmd and path in due:
                    subprocess.run(shlex.split(args.after_bench_cmd), check=True)
    return rows


def _startup(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for setting in args.startup_params:
        for number in range(args.num_runs):
            path = folder / _name(setting) / f"run={number}.json"
            bench = [*command(args.startup_cmd, setting), "--output-json", str(path)]
            if args.dry_run:
                print(shlex.join(bench))
            else:
                rows.append(_run(args, bench, folder, path, setting, number))
    return rows


def _run(
    args: argparse.Namespace,
    words: list[str],
    folder: Path,
    path: Path,
    settings: Settings,
    number: int,
) -> dict[str, Any]:
    """The result of one run, from its file if it is there already."""
    row = {"benchmark": str(path.parent.relative_to(folder)), "run_number": number, **settings}
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(words, capture_output=not args.show_stdout, text=True)
        if done.returncode != 0 or not path.is_file():
            said = " ".join((done.stderr or "").split())[-500:]
            return row | {"failed_with": f"{shlex.join(words)} ended with {done.returncode} {said}"}
    return row | json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _server(args: argparse.Namespace, words: list[str]) -> Iterator[None]:
    """A server that answers; its end is waited for. Raises ValueError if it does not come up."""
    output = None if args.show_stdout else subprocess.DEVNULL
    process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        _until_ready(process, _url(words), args.server_ready_timeout)
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session
            process.wait()


def _url(words: list[str]) -> str:
    found = {"host": "127.0.0.1", "port": "8000"}
    for name in found:
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word == f"--{name}":
                found[name] = following
            elif word.startswith(f"--{name}="):
                found[name] = word.partition("=")[2]
    return f"http://{found['host'].replace('0.0.0.0', '127.0.0.1')}:{found['port']}/health"


def _until_ready(process: subprocess.Popen[bytes], url: str, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        if process.poll() is not None:
            raise ValueError(f"the server ended with {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > end:
            raise ValueError(f"the server was not ready after {patience} s")
        time.sleep(0.2)


def _write_summary(folder: Path, rows: list[dict[str, Any]]) -> None:
    """All runs: summary.json whole, summary.csv with what is a number or a word."""
    write_json(folder / "summary.json", {"runs": rows})
    plain = [{k: v for k, v in r.items() if not isinstance(v, (dict, list))} for r in rows]
    names = list(dict.fromkeys(name for row in plain for name in row))
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(plain)
