"""Answer LongBench from a folder of its JSON lines, with or without a compressed KV cache.

    python -m experiments.longbench.run_longbench --model llama3 --data-dir LongBench/data \
        --compression-rate 8

Answers go to RESULTS/MODEL/DATASET-CACHE_wWINDOW_NORM.jsonl, line by line; a run that was stopped
goes on where it was. `experiments.longbench.eval` scores them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments import asking, resume
from experiments.asking import as_chat, kept
from experiments.longbench.tasks import (
    DATASETS,
    IN_E,
    Dataset,
    file_name,
    filled,
    load_prompts,
    read_rows,
)
from vllm import LLM, SamplingParams
from vllm.config.compression import AGGREGATIONS
from vllm.core.compression import BUDGET_RULES, METRICS
from vllm.outputs import RequestOutput

BLOCK = 16


@dataclass(frozen=True)
class Preset:
    folder: str
    prompt_tokens: int  # longer prompts lose their middle


PRESETS = {
    "mistral": Preset("mistralai/Mistral-7B-Instruct-v0.2", 31_500),
    "llama3": Preset("meta-llama/Llama-3.1-8B-Instruct", 130_000),
    "llama3-70b": Preset("meta-llama/Llama-3.1-70B-Instruct", 130_000),
}


def make_parser() -> argparse.ArgumentParser:
    parser = asking.make_parser("longbench.run_longbench", __doc__)
    add = parser.add_argument
    add("--model", required=True, help=f"{', '.join(PRESETS)}, or a folder or hub id.")
    add("--dataset", nargs="+", choices=DATASETS, default=list(DATASETS), metavar="NAME")
    add("--e", action="store_true", help="LongBench-E: NAME_e.jsonl.")
    add("--data-dir", type=Path, required=True, help="Where the JSON lines are.")
    add("--split", default="test", help="Folder below --data-dir, if there is one of that name.")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--max-model-len", type=int, help="Default: the model's.")
    add("--gpu-mem-util", type=float, default=0.7)
    add("--batch-size", type=int, default=1, help="Rows that are answered together.")
    add("--max-cache-tokens", type=int, default=-1, help="KVs a head. -1: all.")
    add("--compression-rate", type=float, help="8 keeps an eighth of each prompt.")
    add("--min-cache-tokens", type=int, default=128, help="Least that a rate keeps.")
    add("--protected-window-size", type=int, default=50)
    add("--metric-collection-buffer-size", type=int, default=0)
    add("--prefill-metric-collection-window-size", type=int, default=32)
    add("--prefill-metric-collection-block-size", type=int, default=4096)
    add("--max-kv-per-compression", type=int, default=50_000_000)
    add("--metric-aggregation", default="L2-sum", choices=AGGREGATIONS)
    add("--no-maxpool-metrics", action="store_true")
    add("--continual-compression", action="store_true", help="Compress while decoding, too.")
    add("--kv-head-bias-path", type=Path)
    add("--kv-head-bias-weight", type=float, default=0.0)
    add("--compression-metric", default="kvc", choices=METRICS)
    add("--compression-budget", default="global", choices=BUDGET_RULES)
    add("--n-rows", type=int, help="Only so many rows of each dataset.")
    add("--test-row", type=int, help="Answer this row alone and print it; nothing is written.")
    add("--run-id", help="Results of their own, in RESULTS/MODEL-RUN_ID.")
    add("--results", type=Path, default=Path("results/longbench"))
    add("--prompts", type=Path, help="LongBench's dataset2prompt.json, in place of our wording.")
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises ValueError."""
    if args.compression_rate is not None and args.max_cache_tokens != -1:
        raise ValueError("--compression-rate and --max-cache-tokens exclude each other")
    if args.compression_rate is not None and args.compression_rate < 1:
        raise ValueError(f"--compression-rate must be at least 1, not {args.compression_rate}")
    if args.max_cache_tokens != -1 and args.max_cache_tokens < 1:
        raise ValueError(f"--max-cache-tokens must be -1 or positive, not {args.max_cache_tokens}")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be positive, not {args.batch_size}")
    if not args.data_dir.is_dir():
        raise ValueError(f"--data-dir: {args.data_dir} is no folder")
    if args.e and (others := [d for d in args.dataset if d not in IN_E]):
        if set(args.dataset) != set(DATASETS):
            raise ValueError(f"--e: LongBench-E has no {', '.join(others)}")
        args.dataset = list(IN_E)


def compresses(args: argparse.Namespace) -> bool:
    return args.max_cache_tokens != -1 or args.compression_rate is not None


def setting_name(args: argparse.Namespace) -> str:
    """As in a result's name: full, 128_w32_L2, 8x_w32_L2_cc, …"""
    if not compresses(args):
        return "full"
    rate = args.compression_rate
    size = f"{args.max_cache_tokens}" if rate is None else f"{rate:g}x"
    name = f"{size}_w{args.prefill_metric_collection_window_size}_{args.metric_aggregation[:2]}"
    name += "_b" if args.kv_head_bias_path else ""
    name += "_cc" if args.continual_compression else ""
    name += "" if args.compression_metric == "kvc" else f"_{args.compression_metric}"
    return name + ("" if args.compression_budget == "global" else f"_{args.compression_budget}")


def kept_tokens(prompt_tokens: int, rate: float, least: int) -> int:
    """KVs a head that a rate leaves, below its share by up to a block and in whole blocks."""
    return max(least, (int(prompt_tokens / rate) - 1) // BLOCK * BLOCK)


class Asker:
    """One model that answers rows of LongBench."""

    def __init__(self, args: argparse.Namespace) -> None:
        preset = PRESETS.get(args.model)
        self._args = args
        self._most = preset.prompt_tokens if preset else sys.maxsize
        self._llm = LLM(
            model=preset.folder if preset else args.model,
            device=args.device,
            max_model_len=args.max_model_len,
            gpu_memory_utilization=args.gpu_mem_util,
            block_size=BLOCK,
            **self._compression(),
        )
        self._tokenizer = self._llm.llm_engine.tokenizer

    def _compression(self) -> dict[str, Any]:
        args = self._args
        if not compresses(args):
            return {}
        return {
            "enable_kvc": True,
            "max_kv_per_compression": args.max_kv_per_compression,
            "prefill_metric_collection_window_size": args.prefill_metric_collection_window_size,
            "prefill_metric_collection_block_size": args.prefill_metric_collection_block_size,
            "metric_aggregation": args.metric_aggregation,
            "maxpool_metrics": not args.no_maxpool_metrics,
            "kv_head_bias_path": args.kv_head_bias_path and str(args.kv_head_bias_path),
            "kv_head_bias_weight": args.kv_head_bias_weight,
            "compression_budget": args.compression_budget,
        }

    def ask(self, dataset: Dataset, prompt: str, rows: list[dict[str, Any]]) -> list[RequestOutput]:
        prompts = [self._tokens(dataset, filled(prompt, row)) for row in rows]
        params = [self._params(dataset, len(ids)) for ids in prompts]
        return self._llm.generate(prompts, params, use_tqdm=False)

    def lines(
        self, dataset: Dataset, prompt: str, rows: list[dict[str, Any]], first: int, end: int
    ) -> list[dict[str, Any]]:
        """Results of these of the rows."""
        part = rows[first:end]
        outputs = self.ask(dataset, prompt, part)
        return [answered(row, output) for row, output in zip(part, outputs, strict=True)]

    def _tokens(self, dataset: Dataset, text: str) -> list[int]:
        """The prompt; of one too long the middle is left out."""
        room = self._llm.llm_engine.max_model_len - dataset.max_tokens
        room -= len(self._dressed(dataset, ""))
        most = min(room, self._most)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if len(ids) > most:
            half = max(0, most) // 2
            decode = self._tokenizer.decode
            text = decode(ids[:half]) + decode(ids[len(ids) - half :])
        return self._dressed(dataset, text)

    def _dressed(self, dataset: Dataset, text: str) -> list[int]:
        return as_chat(self._tokenizer, text) if dataset.chat else self._tokenizer.encode(text)

    def _params(self, dataset: Dataset, prompt_tokens: int) -> SamplingParams:
        args = self._args
        plain = {"temperature": 0.0, "max_tokens": dataset.max_tokens}
        if not compresses(args):
            return SamplingParams(**plain)
        most, rate = args.max_cache_tokens, args.compression_rate
        if rate is not None:
            most = kept_tokens(prompt_tokens, rate, args.min_cache_tokens)
        return SamplingParams(
            **plain,
            max_cache_tokens=most,
            protected_window_size=args.protected_window_size,
            metric_collection_buffer_size=args.metric_collection_buffer_size,
            compression_metric=args.compression_metric,
            compress_once=not args.continual_compression,
        )

    def close(self) -> None:
        self._llm.shutdown()


def answered(row: dict[str, Any], output: RequestOutput) -> dict[str, Any]:
    """A line of results: LongBench's four fields, and what was kept."""
    made = output.outputs[0]
    line = {
        "pred": made.text,
        "answers": row["answers"],
        "all_classes": row.get("all_classes"),
        "length": row["length"],
        "prompt_tokens": len(output.prompt_token_ids),
    }
    return line | kept(made)


def run(args: argparse.Namespace) -> list[Path]:
    """Returns the files of results. Raises ValueError."""
    check(args)
    prompts = load_prompts(args.prompts) if args.prompts else {}
    folder = args.data_dir / args.split
    folder = folder if folder.is_dir() else args.data_dir
    data = {name: read_rows(folder / file_name(name, args.e)) for name in args.dataset}
    model = Path(args.model).name + (f"-{args.run_id}" if args.run_id else "")
    settings = {
        n: str(v) if isinstance(v, Path) else v
        for n, v in vars(args).items()
        if n not in ("dataset", "n_rows", "batch_size", "results", "test_row")
    }
    asker = Asker(args)
    written = []
    try:
        for name, rows in data.items():
            dataset = DATASETS[name]
            prompt = prompts.get(name, dataset.prompt)
            if args.test_row is not None:
                row = rows[args.test_row]
                print(f"{name}: {answered(row, asker.ask(dataset, prompt, [row])[0])}")
                continue
            stem = f"{name}_e" if args.e else name
            path = args.results / model / f"{stem}-{setting_name(args)}.jsonl"
            some = rows[: args.n_rows]
            answer = partial(asker.lines, dataset, prompt, some)
            resume.fill(path, settings, len(some), answer, batch=args.batch_size)
            written.append(path)
    finally:
        asker.close()
    return written


def main() -> None:
    try:
        run(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
