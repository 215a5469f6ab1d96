"""One worker in the process of the engine core."""

from __future__ import annotations

import logging
import os

import torch

from vllm import kernels
from vllm.config import VllmConfig
from vllm.config.engine import TierConfig
from vllm.config.vocabulary import read_tokenizer
from vllm.core.clock import monotonic
from vllm.core.plan import StepPlan, StepResult
from vllm.kv import arena
from vllm.kv.build import attach_tiers
from vllm.kv.manager import KVManager
from vllm.kv.spec import KVSpec
from vllm.model_executor.loader import load_model
from vllm.worker.runner import ModelRunner

logger = logging.getLogger(__name__)


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
        model = load_model(
            config.model.folder,
            config.model.hf,
            ops,
            getattr(torch, config.model.dtype),
            load_format=config.load.load_format,
            seed=config.model.seed,
        )
        kv = arena.allocate(spec, num_blocks, device)
        self.blocks = arena.ArenaIO(kv)
        self.clock = monotonic
        self.runner = ModelRunner(
            model,
            kv,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_model_len=max_model_len,
            vocab_size=config.model.vocab_size,
            vocabulary=lambda: read_tokenizer(config.model.tokenizer_folder).to_str(),
        )

    def execute(self, plan: StepPlan) -> StepResult:
        return self.runner.execute(plan)

    def attach_tiers(self, kv: KVManager, config: TierConfig, fingerprint: bytes) -> None:
        attach_tiers(kv, config, self.blocks, fingerprint)

    def shutdown(self) -> None:
        """Nothing to stop: the worker lives in this process."""
