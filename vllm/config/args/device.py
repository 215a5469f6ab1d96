"""The flags of what the engine runs on."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vllm.config.engine import DeviceConfig
from vllm.config.flags import at_least, flag


@dataclass(kw_only=True)
class DeviceArgs:
    device: str = flag("auto", "Device", "Device to run on.", choices=("auto", "cpu", "cuda"))
    kernels: str = flag(
        "auto", "Device", "Kernel set.", choices=("auto", "reference", "cpu", "triton")
    )
    cpu_threads: int | None = flag(
        None,
        "Device",
        "Threads of the CPU kernels; default: OMP_NUM_THREADS, or the CPUs it may use.",
    )
    tensor_parallel_size: int = flag(
        1, "Parallel", "Ranks that share one model; only 1 for now.", short="-tp"
    )

    def make_device(self) -> DeviceConfig:
        """Raises ValueError naming the argument at fault."""
        at_least(self, 1, "cpu_threads")
        if self.tensor_parallel_size != 1:
            raise ValueError("tensor_parallel_size: only 1 is supported for now")
        # There are no kernels for a GPU yet, so auto is the CPU.
        device = "cpu" if self.device == "auto" else self.device
        if os.environ.get("VLLM_PLATFORM") == "cpu":
            device = "cpu"
        kernels = self.kernels
        if kernels == "auto" and os.environ.get("VLLM_ATTENTION_BACKEND") == "TORCH_SDPA":
            kernels = "reference"
        return DeviceConfig(device=device, kernels=kernels, threads=self.cpu_threads)
