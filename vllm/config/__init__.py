"""Configuration: frozen once made, unknown keys are errors."""

from vllm.config.args import AsyncEngineArgs, EngineArgs
from vllm.config.engine import (
    CacheConfig,
    DeviceConfig,
    LoadConfig,
    ProfilerConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.config.model import ModelConfig

__all__ = [
    "AsyncEngineArgs",
    "CacheConfig",
    "DeviceConfig",
    "EngineArgs",
    "LoadConfig",
    "ModelConfig",
    "ProfilerConfig",
    "SchedulerConfig",
    "VllmConfig",
]
