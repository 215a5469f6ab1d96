"""`EngineArgs`: the engine's arguments as keywords, as command-line flags and as YAML: one list.

A file a group of flags: what they are, what they refuse, what part of the configuration they make.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from vllm.config.args.absent import AbsentArgs
from vllm.config.args.cache import CacheArgs
from vllm.config.args.compression import CompressionArgs
from vllm.config.args.device import DeviceArgs
from vllm.config.args.model import ModelArgs
from vllm.config.args.observability import ObservabilityArgs
from vllm.config.args.scheduler import SchedulerArgs
from vllm.config.args.simulator import SimulatorArgs
from vllm.config.args.tiers import TierArgs
from vllm.config.engine import LoadConfig, VllmConfig
from vllm.config.flags import Flags, add_flags, check_types


@dataclass
class EngineArgs(
    # A dataclass takes the fields of its last base first.
    AbsentArgs,
    SimulatorArgs,
    ObservabilityArgs,
    CompressionArgs,
    SchedulerArgs,
    TierArgs,
    CacheArgs,
    DeviceArgs,
    ModelArgs,
    Flags,
):
    """Every argument of the engine. An unknown keyword is a TypeError, as for any dataclass.

    `create_engine_config` checks them and raises ValueError naming the argument at fault.
    """

    def __post_init__(self) -> None:
        """Programs may give paths and torch's dtypes where flags are text, and -1 for auto."""
        for name in ("model", "tokenizer", "generation_config", "chat_template", "download_dir"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                setattr(self, name, os.fspath(value))
        self.dtype = str(self.dtype).removeprefix("torch.")
        if self.max_model_len in (-1, "auto"):
            self.max_model_len = None
        for name in ("max_cache_tokens", "new_token_limit"):
            if getattr(self, name) == -1:
                setattr(self, name, None)

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Give a program's own parser all of the engine's flags."""
        add_flags(parser, EngineArgs)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        return cls.from_mapping(args)

    def create_engine_config(self, *, serving: bool = False) -> VllmConfig:
        """Check everything and read the model's files (not its weights). Raises ValueError."""
        self.refuse()
        check_types(self)
        simulator = self.make_simulator()
        simulated = simulator is not None
        load_format = "dummy" if simulated else self.load_format
        model = self.make_model(
            self.shape(),
            weights=load_format != "dummy",
            name=self.simulator_model or "demo",
        )
        caching = self.enable_prefix_caching
        tiers = self.make_tiers(prefix_caching=caching, simulated=simulated)
        return VllmConfig(
            model=model,
            cache=self.make_cache(tiers, simulated=simulated, metrics_sample=self.metrics_sample()),
            scheduler=self.make_scheduler(tiers, prefix_caching=caching, serving=serving),
            load=LoadConfig(load_format),
            device=self.make_device(),
            disable_log_stats=self.disable_log_stats,
            prefix_metrics=self.checked_prefix_metrics(),
            simulator=simulator,
            compression=self.make_compression(model),
            profiler=self.make_profiler(),
        )


@dataclass
class AsyncEngineArgs(EngineArgs):
    """The arguments of an engine that serves."""
