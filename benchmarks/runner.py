"""Benchmarks on servers, several trials each, every trial on a fresh server.

python -m benchmarks.runner --result-dir results/mine                      all on all, as the study
python -m benchmarks.runner --benchmarks guessing_game --servers apc mt-apc --num-trials 3 ...
python -m benchmarks.runner --servers apc 'mine=--block-size 32 --max-num-seqs 8' ...
python -m benchmarks.runner --simulate h200 llama-3-8b ...                 in simulated time

A server is a preset's name, or a name of yours and `vllm serve`'s arguments. What a run has
finished stays in RESULT_DIR/raw; the same command goes on where it was stopped. `benchmarks.report`
draws it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import trial
from benchmarks.presets import BITS, PRESETS, compresses
from benchmarks.programs import PROGRAMS
from benchmarks.recorded import differences
from vllm.config import EngineArgs
from vllm.config.flags import FlexibleArgumentParser, add_flags

SHOWN = {
    "duration": "seconds",
    "request_throughput": "req/s",
    "output_throughput": "out tok/s",
    "median_ttft_ms": "TTFT ms",
    "median_tpot_ms": "TPOT ms",
    "device_prefix_cache_hit_rate": "device %",
    "host_prefix_cache_hit_rate": "host %",
}
LISTS = ("input_lens", "output_lens", "ttfts", "tpots", "itls", "latencies", "errors", "texts")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runner",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="benchmarks:\n"
        + "\n".join(f"  {p.name:24}{p.what}" for p in PROGRAMS.values())
        + "\n\nservers:\n  "
        + " ".join(PRESETS),
    )
    add = parser.add_argument
    add("--benchmarks", nargs="+", default=list(PROGRAMS), metavar="NAME", help="Default: all.")
    add(
        "--servers",
        nargs="+",
        metavar="NAME[=ARGS]",
        default=list(BITS),
        help="Default: the study's eight presets.",
    )
    add("--num-trials", type=int, default=5)
    add("--result-dir", type=Path, required=True)
    add("--clear-result-dir", action="store_true", help="Remove what is there, and begin anew.")
    add("--scale", choices=("full", "small"), default="full")
    add("--model", help="Folder or hub id; default: the demo model.")
    add("--serve-args", default="", help="Arguments of vllm serve that all servers get.")
    add("--simulate", nargs=2, metavar=("DEVICE", "MODEL"), help="As h200 llama-3-8b.")
    add("--data", nargs="+", default=[], metavar="BENCHMARK=FILE", help="Real files to replay.")
    add("--seed", type=int, default=42)
    return parser


def read_servers(given: list[str], all_get: str) -> dict[str, dict[str, Any]]:
    """Engine keywords by name. Raises ValueError for a preset that does not exist."""
    servers = {}
    for word in given:
        name, equals, arguments = word.partition("=")
        if equals:
            keywords = _keywords(arguments)
        elif name in PRESETS:
            keywords = dict(PRESETS[name])
        else:
            raise ValueError(f"--servers: {name!r} is none of {', '.join(PRESETS)}")
        servers[name] = keywords | _keywords(all_get)
    return servers


def _keywords(arguments: str) -> dict[str, Any]:
    """What flags of the engine say, as keywords; only those that are given."""
    parser = FlexibleArgumentParser(prog="a server's arguments")
    add_flags(parser, EngineArgs)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(shlex.split(arguments)))


def read_data(given: list[str]) -> dict[str, Path]:
    """Files by benchmark. Raises ValueError for one that takes none, or is not there."""
    files = {}
    for word in given:
        name, _, path = word.partition("=")
        if name not in PROGRAMS or PROGRAMS[name].data is None:
            takers = ", ".join(f"{p.name} ({p.data})" for p in PROGRAMS.values() if p.data)
            raise ValueError(f"--data: {name!r} takes no file; {takers} do")
        if not Path(path).is_file():
            raise ValueError(f"--data: {path!r} is no file")
        files[name] = Path(path)
    return files


def prepare(folder: Path, clear: bool, settings: dict[str, Any]) -> None:
    """Make the folder, or go on in one of the same settings. Raises ValueError."""
    if clear and folder.exists():
        if not (folder / "run.json").exists() and any(folder.iterdir()):
            raise ValueError(f"--clear-result-dir: {folder} is not a result folder")
        shutil.rmtree(folder)
    path = folder / "run.json"
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{folder} holds a run of other settings (--clear-result-dir?)")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not a result folder")
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "cleaned").mkdir(exist_ok=True)
    _write(path, settings)


def _write(path: Path, value: Any) -> None:
    """Whole or not at all: what is there counts as done."""
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(value) + "\n", encoding="utf-8")
    aside.replace(path)


def run_trial(args: argparse.Namespace, name: str, server: dict[str, Any], number: int) -> Any:
    program = PROGRAMS[name]
    engine = trial.engine_for(program, args.scale, server)
    if not args.simulate:
        # Rounding in bf16 depends on how many tokens a step has, and may decide a near-tie.
        engine.setdefault("dtype", "float32")
        if args.model:
            engine["model"] = args.model
        engine["max_model_len"] = min(engine["max_model_len"], args.longest)
    with tqdm(desc=f"{name} {number + 1}", unit="req", leave=False) as bar:
        own = trial.Trial(
            program, args.scale, engine, args.seed + number, bar.update, args.files.get(name)
        )
        result = trial.simulated(own, *args.simulate) if args.simulate else trial.real(own)
    return result | {
        "simulated": args.simulate,
        "compressed": compresses(engine),
        "scale": args.scale,
        "trial": number,
    }


def run_all(args: argparse.Namespace, servers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Servers in turn within each trial, so that a machine's drift meets all of them alike."""
    todo = [(b, t, s) for b in args.benchmarks for t in range(args.num_trials) for s in servers]
    results = []
    for benchmark, number, server in tqdm(todo, unit="trial"):
        path = args.result_dir / "raw" / f"{benchmark}_{server}_{number}.json"
        if not path.exists():
            result = run_trial(args, benchmark, servers[server], number)
            _write(path, {"benchmark": benchmark, "server": server} | result)
        results.append(json.loads(path.read_text(encoding="utf-8")))
    return results


def clean(folder: Path, results: list[dict[str, Any]]) -> None:
    """cleaned/BENCHMARK.csv: a line a trial, all that is a number or a word."""
    for benchmark in dict.fromkeys(r["benchmark"] for r in results):
        rows = [
            {"method": r["server"], "iteration": r["trial"]}
            | {
                name: value
                for name, value in r.items()
                if isinstance(value, (int, float, str)) and name not in ("server", "trial")
            }
            | {"simulated": " ".join(r["simulated"] or [])}
            for r in results
            if r["benchmark"] == benchmark
        ]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with (folder / "cleaned" / f"{benchmark}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def unlike(results: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, int]]:
    """(benchmark, server) -> answers unlike those of the first that keeps all KVs, of so many."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    groups: dict[tuple[str, int], dict[str, dict[str, str]]] = {}
    for r in sorted(results, key=lambda r: bool(r["compressed"])):
        groups.setdefault((r["benchmark"], r["trial"]), {})[r["server"]] = r["texts"]
    for (benchmark, _), texts in groups.items():
        for server, count in differences(texts).items():
            wrong, of = found.get((benchmark, server), (0, 0))
            found[benchmark, server] = wrong + count, of + len(texts[server])
    return found


def show(results: list[dict[str, Any]], console: Console) -> None:
    different = unlike(results)
    for benchmark in dict.fromkeys(r["benchmark"] for r in results):
        own = [r for r in results if r["benchmark"] == benchmark]
        simulated = own[0]["simulated"]
        title = benchmark + (f" (simulated: {' '.join(simulated)})" if simulated else "")
        table = Table("server", *SHOWN.values(), "failed", "other answers", title=title)
        for server in dict.fromkeys(r["server"] for r in own):
            trials = [r for r in own if r["server"] == server]
            means = [sum(r[name] for r in trials) / len(trials) for name in SHOWN]
            wrong, of = different.get((benchmark, server), (0, 0))
            answers = f"{wrong} of {of}" if of else ""
            if trials[0]["compressed"]:
                answers += " (compressed)"
            failed = str(sum(r["failed"] for r in trials))
            table.add_row(server, *(f"{m:.3g}" for m in means), failed, answers)
        console.print(table)


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    if unknown := [name for name in args.benchmarks if name not in PROGRAMS]:
        parser.error(f"--benchmarks: {unknown[0]!r} is none of {', '.join(PROGRAMS)}")
    if args.num_trials < 1:
        parser.error("--num-trials must be at least 1")
    try:
        servers = read_servers(args.servers, args.serve_args)
        args.files = read_data(args.data)
        if args.simulate:
            from benchmarks.simulated import config

            config(*args.simulate)
            if compressing := [name for name, has in servers.items() if has.get("enable_kvc")]:
                raise ValueError(f"--simulate: {compressing[0]} compresses, which needs a model")
        else:
            args.longest = EngineArgs(model=args.model).create_engine_config().model.max_model_len
        settings = {
            "benchmarks": args.benchmarks,
            "servers": servers,
            "scale": args.scale,
            "model": args.model,
            "simulate": args.simulate,
            "seed": args.seed,
            "data": {name: str(path) for name, path in args.files.items()},
        }
        prepare(args.result_dir, args.clear_result_dir, settings)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        results = run_all(args, servers)
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    clean(args.result_dir, results)
    show(results, Console(width=max(100, Console().width)))
    wrong = [
        f"{benchmark} on {server}: {count} of {of} answers differ"
        for (benchmark, server), (count, of) in unlike(results).items()
        if count and not compresses(servers[server])
    ]
    failed = [
        f"{r['benchmark']} on {r['server']}: {r['errors'][0]}" for r in results if r["failed"]
    ]
    for line in wrong + failed:
        print(line, file=sys.stderr)
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
