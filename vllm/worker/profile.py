"""Profiling a worker's steps with torch's profiler; Perfetto and chrome://tracing show the file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from vllm.config.engine import ProfilerConfig
from vllm.core.errors import VLLMValidationError


class Profiler:
    """Start, run steps, stop: one JSON file. It stops by itself after `max_iterations` steps."""

    def __init__(self, config: ProfilerConfig | None) -> None:
        self._config = config
        self._running: profile | None = None
        self._steps = 0
        self._last: str | None = None

    def start(self) -> str:
        """The folder that the file will be in. Raises VLLMValidationError."""
        if self._config is None:
            raise VLLMValidationError(
                "profiling needs --profiler-config.torch_profiler_dir or VLLM_TORCH_PROFILER_DIR",
                parameter="profiler_config",
            )
        if self._running is not None:
            raise VLLMValidationError("a profile is being taken already")
        folder = Path(self._config.torch_profiler_dir)
        folder.mkdir(parents=True, exist_ok=True)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._running = profile(
            activities=activities,
            record_shapes=self._config.torch_profiler_record_shapes,
            with_stack=self._config.torch_profiler_with_stack,
            profile_memory=self._config.torch_profiler_with_memory,
        )
        self._running.start()
        self._steps, self._last = 0, None
        return str(folder)

    def step(self) -> None:
        """A step has been executed."""
        if self._running is not None:
            self._steps += 1
            assert self._config is not None
            if self._steps >= self._config.max_iterations:
                self._last = self._write()

    def stop(self) -> str:
        """The file. Raises VLLMValidationError when no profile was started."""
        if self._running is not None:
            return self._write()
        if self._last is None:
            raise VLLMValidationError("no profile is being taken")
        path, self._last = self._last, None
        return path

    def _write(self) -> str:
        assert self._running is not None and self._config is not None
        running, self._running = self._running, None
        running.stop()
        name = f"rank0.{os.getpid()}.{time.time_ns()}.pt.trace.json"
        path = Path(self._config.torch_profiler_dir) / name
        running.export_chrome_trace(str(path))
        return str(path)
