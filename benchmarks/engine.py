"""The engine against the machine's limits and against transformers, on a 0.5 B Llama in bf16.

    python -m benchmarks.engine [--rounds 5] [--json results/engine.json] [--layers 24]

Weights are random; the model's folder is made once, in --folder. Everything is measured in one
run, the contenders in turn. Lines:

    prefill    512 tokens; torch.matmul on the same shapes is the matrix rate to reach
    decode     a step at concurrency 1, 8, 32; weight bytes / read bandwidth is the time to reach
    warm TTFT  a 512-token prompt of which 480 are cached
    scheduler  schedule and update of a step with 64 running sequences, no model
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import alternate, read_bandwidth, spread, write_json
from vllm.config import EngineArgs, SchedulerConfig
from vllm.core.plan import StepPlan, StepResult
from vllm.core.request import EngineRequest
from vllm.engine.llm_engine import LLMEngine
from vllm.entrypoints.executor import make_executor
from vllm.kv.manager import KVManager
from vllm.kv.spec import KVSpec
from vllm.sampling_params import SamplingParams
from vllm.scheduler.scheduler import Scheduler

PROMPT, CACHED, CONTEXT, STEPS = 512, 480, 128, 16
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 1280, 3456, 20, 4, 32000


def make_model(folder: Path, layers: int, **sizes: int) -> None:
    """A Llama of random parameters in bf16, in Hugging Face's format; with 24 layers 0.5 B.

    sizes: other ones, by LlamaConfig's names.
    """
    if (folder / "model.safetensors").is_file():
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    usual = {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
    }
    config = LlamaConfig(**usual | sizes, num_hidden_layers=layers, tie_word_embeddings=False)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


class Ours:
    """The engine, in this process."""

    def __init__(self, folder: Path) -> None:
        args = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            num_gpu_blocks_override=1024,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
        )
        self.engine = LLMEngine(args.create_engine_config(), make_executor)
        self._count = 0
        self._random = torch.Generator().manual_seed(1)

    def prompt(self, length: int) -> list[int]:
        return torch.randint(10, VOCAB, (length,), generator=self._random).tolist()

    def run(self, prompts: list[list[int]], tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        for prompt in prompts:
            self._count += 1
            self.engine.add_request(str(self._count), prompt, params)
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def prefill(self) -> None:
        self.run([self.prompt(PROMPT)], 1)

    def decode(self, concurrency: int) -> float:
        """Seconds a step, without the prompts'."""
        params = SamplingParams(temperature=0, max_tokens=STEPS + 2, ignore_eos=True)
        for _ in range(concurrency):
            self._count += 1
            self.engine.add_request(str(self._count), self.prompt(CONTEXT), params)
        while self.engine.core.scheduler.waiting or any(
            s.output_len == 0 for s in self.engine.core.scheduler.running
        ):
            self.engine.step()
        start = time.perf_counter()
        for _ in range(STEPS):
            self.engine.step()
        taken = (time.perf_counter() - start) / STEPS
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return taken

    def warm(self) -> float:
        """TTFT of a prompt whose first 480 tokens are cached."""
        prefix = self.prompt(CACHED)
        self.run([[*prefix, 5]], 1)
        start = time.perf_counter()
        self.run([prefix + self.prompt(PROMPT - CACHED)], 1)
        return time.perf_counter() - start


class Transformers:
    """The same weights through transformers: its own cache, scaled-dot-product attention."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.weight_bytes = sum(
            p.numel() * p.element_size()
            for name, p in self.model.named_parameters()
            if "embed_tokens" not in name
        )

    @torch.inference_mode()
    def prefill(self) -> None:
        logits = self.model(torch.randint(10, VOCAB, (1, PROMPT)), logits_to_keep=1).logits
        logits.argmax(-1)

    @torch.inference_mode()
    def decode(self, concurrency: int) -> float:
        out = self.model(torch.randint(10, VOCAB, (concurrency, CONTEXT)), logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(STEPS):
            out = self.model(token, past_key_values=out.past_key_values, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
        return (time.perf_counter() - start) / STEPS


def matmuls(layers: int) -> Any:
    """torch.matmul over a prefill's shapes, with weights of their own so that no cache helps."""
    dim = HIDDEN // HEADS
    shapes = [
        ((HEADS + 2 * KV_HEADS) * dim, HIDDEN),
        (HIDDEN, HIDDEN),
        (2 * INTERMEDIATE, HIDDEN),
        (HIDDEN, INTERMEDIATE),
    ]
    weights = [torch.randn(s, dtype=torch.bfloat16) for _ in range(layers) for s in shapes]
    inputs = {k: torch.randn(PROMPT, k, dtype=torch.bfloat16) for k in (HIDDEN, INTERMEDIATE)}

    def run() -> None:
        for weight in weights:
            torch.matmul(inputs[weight.shape[1]], weight.T)

    return run


class NoModel:
    """An executor that answers at once."""

    def execute(self, plan: StepPlan) -> StepResult:
        return StepResult(tokens=[7] * int(plan.sample.sum()))


def scheduler_step(running: int = 64, steps: int = 400) -> list[float]:
    """Microseconds of schedule and update, each step with `running` decoding sequences."""
    config = SchedulerConfig("fcfs", running, 2048, True, 0, None, None)
    kv = KVManager(KVSpec(24, KV_HEADS, 64, 16, "bfloat16"), 8192, bytes(32))
    scheduler = Scheduler(config, kv, max_model_len=2048)
    params = SamplingParams(temperature=0, max_tokens=steps + 50, ignore_eos=True)
    for i in range(running):
        tokens = list(range(i, i + CONTEXT))
        scheduler.add(
            EngineRequest(
                request_id=str(i),
                prompt_token_ids=tokens,
                params=params,
                max_tokens=steps + 50,
                arrival=float(i),
            ),
            0.0,
        )
    executor, times = NoModel(), []
    while len(scheduler.running) < running or scheduler.running[-1].output_len < 2:
        plan = scheduler.schedule(0.0)
        scheduler.update(plan, executor.execute(plan))
    for _ in range(steps):
        start = time.perf_counter()
        plan = scheduler.schedule(0.0)
        middle = time.perf_counter()
        result = executor.execute(plan)
        again = time.perf_counter()
        scheduler.update(plan, result)
        times.append((time.perf_counter() - again + middle - start) * 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24, help="24 make 0.5 B parameters")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "vllm-bench-llama"))
    parser.add_argument("--json", help="where to write the results")
    args = parser.parse_args()
    folder = Path(f"{args.folder}-{args.layers}")
    make_model(folder, args.layers)
    theirs = Transformers(folder)
    ours = Ours(folder)
    rows: list[tuple[str, str, str, str]] = []
    results: dict[str, Any] = {}

    def keep(name: str, seconds: dict[str, list[float]], **ratios: Any) -> None:
        results[name] = {"seconds": seconds, "ratios": ratios}

    prefill = alternate(
        "prefill 512",
        {
            "ours": ours.prefill,
            "matmul": matmuls(args.layers),
            "transformers": theirs.prefill,
        },
        args.rounds,
    )
    limit, other = prefill.ratio("ours", "matmul"), prefill.ratio("ours", "transformers")
    keep("prefill", prefill.seconds, of_matrix_rate=limit, against_transformers=other)
    rows.append(
        ("prefill 512", f"{prefill.median('ours') * 1e3:.0f} ms", spread(limit), spread(other))
    )

    for concurrency in (1, 8, 32):
        decode = alternate(
            f"decode x{concurrency}",
            {
                "ours": lambda c=concurrency: ours.decode(c),
                "weights": lambda: theirs.weight_bytes / read_bandwidth(rounds=2),
                "transformers": lambda c=concurrency: theirs.decode(c),
            },
            args.rounds,
        )
        limit, other = decode.ratio("ours", "weights"), decode.ratio("ours", "transformers")
        keep(
            f"decode_{concurrency}", decode.seconds, of_bandwidth=limit, against_transformers=other
        )
        rows.append(
            (
                f"decode step x{concurrency}",
                f"{decode.median('ours') * 1e3:.1f} ms",
                spread(limit),
                spread(other),
            )
        )

    warm = alternate(
        "warm TTFT",
        {"ours": ours.warm, "cold": ours.prefill, "transformers": theirs.prefill},
        args.rounds,
    )
    cold, other = warm.ratio("ours", "cold"), warm.ratio("ours", "transformers")
    keep("warm_ttft", warm.seconds, against_cold=cold, against_transformers=other)
    rows.append(
        (
            f"warm TTFT ({CACHED}/{PROMPT} cached)",
            f"{warm.median('ours') * 1e3:.1f} ms",
            f"{spread(cold)} x cold",
            spread(other),
        )
    )

    times = scheduler_step()
    results["scheduler_us"] = {
        "median": statistics.median(times),
        "p99": sorted(times)[int(len(times) * 0.99)],
    }
    rows.append(
        (
            "scheduler + cache manager, 64 running",
            f"{statistics.median(times):.0f} us",
            f"p99 {results['scheduler_us']['p99']:.0f} us",
            "",
        )
    )
    print(f"Kernels: {ours.engine.core.executor.kernels}")  # type: ignore[attr-defined]
    print(f"{'':40} {'ours':>10}  {'share of the limit':<26} {'faster than transformers by':<26}")
    for name, value, share, factor in rows:
        print(f"{name:40} {value:>10}  {share:<26} {factor:<26}")
    write_json(args.json, "engine", results)


if __name__ == "__main__":
    main()
