"""One worker in the process of the engine core."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vllm import kernels
from vllm.config import VllmConfig
from vllm.config.engine import TierConfig
from vllm.config.vocabulary import read_tokenizer
from vllm.core.clock import monotonic
from vllm.core.errors import VLLMValidationError
from vllm.core.plan import StepPlan, StepResult
from vllm.kv import arena
from vllm.kv.build import attach_tiers
from vllm.kv.manager import KVManager
from vllm.kv.spec import KVSpec
from vllm.model_executor.loader import load_model
from vllm.model_executor.model import Model
from vllm.worker.profile import Profiler
from vllm.worker.runner import ModelRunner

logger = logging.getLogger(__name__)

# What `collective_rpc` may call by name, which may come from outside of the process.
BY_NAME = ("check_health", "memory_usage", "kernel_table")


def _default_threads() -> int:
    """OMP_NUM_THREADS when it is set, else the CPUs that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else len(os.sched_getaffinity(0))


class UniprocExecutor:
    """Loads the model and the arena, and runs plans. ValueError for what cannot be loaded."""

    def __init__(
        self, config: VllmConfig, spec: KVSpec, num_blocks: int, max_model_len: int
    ) -> None:
        device = config.device.device
        if device != "cpu":
            raise ValueError(f"device {device!r} is not supported yet; use --device cpu")
        torch.set_num_threads(config.device.threads or _default_threads())
        ops = kernels.load(device, config.device.kernels)
        self.kernels = dict(ops.origin)

        def load() -> Model:
            return load_model(
                config.model.folder,
                config.model.hf,
                ops,
                getattr(torch, config.model.dtype),
                load_format=config.load.load_format,
                seed=config.model.seed,
            )

        self._load = load
        model = load()
        kv = arena.allocate(spec, num_blocks, device)
        self.blocks = arena.ArenaIO(kv)
        self.clock = monotonic
        self._profiler = Profiler(config.profiler)
        self.model_runner = ModelRunner(
            model,
            kv,
            ops,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_model_len=max_model_len,
            vocab_size=config.model.vocab_size,
            vocabulary=lambda: read_tokenizer(config.model.tokenizer_folder).to_str(),
            compression=config.compression,
        )

    def execute(self, plan: StepPlan) -> StepResult:
        result = self.model_runner.execute(plan)
        self._profiler.step()
        return result

    def give_back(self, part: str) -> None:
        if part == "kv_cache":
            arena.give_back(self.model_runner.kv)
        else:
            self.model_runner.model = None

    def take_again(self, part: str) -> None:
        if part == "weights" and self.model_runner.model is None:
            self.model_runner.model = self._load()

    def start_profile(self) -> str:
        return self._profiler.start()

    def stop_profile(self) -> str:
        return self._profiler.stop()

    def collective_rpc(
        self, method: str | Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[Any]:
        if isinstance(method, str):
            if method not in BY_NAME:
                raise VLLMValidationError(
                    f"a worker offers {', '.join(BY_NAME)}", parameter="method", value=method
                )
            if args or kwargs:
                raise VLLMValidationError(f"{method} takes no arguments", parameter="args")
            return [getattr(self, method)()]
        return [method(self, *args, **kwargs)]

    def get_model(self) -> Model:
        """The model; for functions that `LLM.collective_rpc` runs."""
        if self.model_runner.model is None:
            raise RuntimeError("the weights are asleep")
        return self.model_runner.model

    def check_health(self) -> bool:
        """Raises RuntimeError for a model whose weights are asleep."""
        return self.get_model() is not None

    def memory_usage(self) -> dict[str, int]:
        """Bytes: of the weights, of the arena, and resident of the whole process."""
        model = self.model_runner.model
        weights = 0 if model is None else sum(p.nbytes for p in model.parameters())
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {"weights": weights, "kv_cache": self.model_runner.kv.nbytes, "resident": resident}

    def kernel_table(self) -> dict[str, str]:
        """Which kernel set each operation comes from."""
        return self.kernels

    def attach_tiers(self, kv: KVManager, config: TierConfig, fingerprint: bytes) -> None:
        attach_tiers(kv, config, self.blocks, fingerprint)

    def shutdown(self) -> None:
        """Nothing to stop: the worker lives in this process."""
