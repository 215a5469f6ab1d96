"""`EngineArgs`: the engine's arguments as keywords, as command-line flags and as YAML: one list."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from vllm.config import hub
from vllm.config.compression_args import CompressionArgs
from vllm.config.engine import (
    CacheConfig,
    DeviceConfig,
    EventsConfig,
    LoadConfig,
    ProfilerConfig,
    SchedulerConfig,
    SimulatorConfig,
    TierConfig,
    VllmConfig,
)
from vllm.config.failures import parse_failures
from vllm.config.flags import add_flags, check_types, flag
from vllm.config.geometries import geometry
from vllm.config.model import (
    ModelConfig,
    read_generation,
    read_json,
    resolve_dtype,
    resolve_max_len,
)
from vllm.config.refused import Refused

logger = logging.getLogger(__name__)

DEFAULT_KV_GIB = 4
DEFAULT_SHARED_BYTES = 16 << 30
# What kv.evict has; a test holds the two together.
EVICTION_POLICIES = tuple(
    "lru fifo lfu s3fifo s3fifo-main workload session ttl quota arc clock gdsf lhd lirs sieve slru "
    "w-tinylfu 2q allow".split()
)


@dataclass
class EngineArgs(CompressionArgs, Refused):
    """Every argument of the engine. An unknown keyword is a TypeError, as for any dataclass.

    `create_engine_config` checks them and raises ValueError naming the argument at fault.
    """

    model: str | None = flag(
        None, "Model", "Model folder or hub id; without one, the demo model that ships with vllm."
    )
    tokenizer: str | None = flag(None, "Model", "Tokenizer folder or hub id, if not the model's.")
    tokenizer_mode: str = flag("auto", "Model", "How to load the tokenizer.", choices=("auto",))
    skip_tokenizer_init: bool = flag(
        False, "Model", "No tokenizer: prompts are token ids, outputs have no text."
    )
    trust_remote_code: bool = flag(
        False, "Model", "Accepted for compatibility; code from model folders is never run."
    )
    dtype: str = flag(
        "auto",
        "Model",
        "Data type of weights, activations and KV cache.",
        choices=("auto", "float32", "float", "bfloat16", "float16", "half"),
    )
    seed: int = flag(0, "Model", "Seed of requests that bring none.")
    max_model_len: int | None = flag(
        None, "Model", "Context length, prompt and output together; 8K means 8192.", size=True
    )
    revision: str | None = flag(None, "Model", "Branch, tag or commit of a hub model.")
    tokenizer_revision: str | None = flag(
        None, "Model", "The same of a tokenizer that is given apart from the model."
    )
    hf_overrides: dict[str, Any] = flag(None, "Model", "JSON object laid over config.json.")
    generation_config: str = flag(
        "auto",
        "Model",
        "Where default sampling parameters come from: auto (model folder), vllm (none), a folder.",
    )
    override_generation_config: dict[str, Any] = flag(
        None, "Model", "JSON object laid over the generation config."
    )
    chat_template: str | None = flag(
        None, "Model", "Jinja template for chats, as a file or in one line, if not the model's."
    )
    max_logprobs: int = flag(20, "Model", "Most logprobs a request may ask for; -1: no limit.")
    enforce_eager: bool = flag(False, "Model", "Run without captured graphs (CPU has none).")
    load_format: str = flag(
        "auto", "Load", "dummy gives random weights.", choices=("auto", "safetensors", "dummy")
    )
    download_dir: str | None = flag(None, "Load", "Where hub models are kept.")
    device: str = flag("auto", "Device", "Device to run on.", choices=("auto", "cpu", "cuda"))
    kernels: str = flag(
        "auto", "Device", "Kernel set.", choices=("auto", "reference", "cpu", "triton")
    )
    cpu_threads: int | None = flag(
        None,
        "Device",
        "Threads of the CPU kernels; default: OMP_NUM_THREADS, or the CPUs it may use.",
    )
    gpu_memory_utilization: float = flag(
        0.92, "Cache", "Share of the GPU's memory to use (no effect on CPU)."
    )
    block_size: int = flag(16, "Cache", "Tokens a block.")
    kv_cache_memory_bytes: int | None = flag(
        None, "Cache", "Bytes of KV cache; 2G means 2 GiB.", size=True
    )
    num_gpu_blocks_override: int | None = flag(
        None, "Cache", "Blocks of KV cache, whatever the memory.", size=True
    )
    enable_prefix_caching: bool = flag(True, "Cache", "Reuse the KVs of prefixes computed before.")
    enable_multi_tier_prefix_caching: bool = flag(
        False, "Cache", "Keep what the device evicts in slower tiers, and load it from there."
    )
    swap_space: float = flag(4.0, "Cache", "GiB of the host tier.")
    num_cpu_blocks_override: int | None = flag(
        None, "Cache", "Blocks of the host tier, whatever swap_space says.", size=True
    )
    kv_offloading_size: float | None = flag(
        None, "Cache", "GiB of the host tier; turns multi-tier prefix caching on (vLLM's name)."
    )
    disk_cache_dir: str | None = flag(None, "Cache", "Folder of the disk tier; none: no such tier.")
    disk_cache_size: int = flag(16 << 30, "Cache", "Bytes of the disk tier.", size=True)
    shared_cache: str | None = flag(
        None,
        "Cache",
        "URL of a store that other engines use as well: shm:///path.sock (vllm kvstore serve), "
        "file:///folder, redis://host:port/db, s3://bucket/prefix. A tier by itself.",
    )
    shared_cache_size: int | None = flag(
        None,
        "Cache",
        "Bytes of all files of a file:// shared_cache, whoever wrote them; default 16 GiB.",
        size=True,
    )
    enable_async_swapping: bool = flag(
        True, "Cache", "Move blocks between tiers while steps run, rather than between them."
    )
    kv_eviction_policy: str = flag(
        "lru",
        "Cache",
        f"Which cached blocks go first, in every tier: {', '.join(EVICTION_POLICIES)}. Some take "
        "settings: allow:WORKLOAD,... ttl:WORKLOAD=SECONDS,... quota:WORKLOAD=SHARE,...",
    )
    min_load_tokens: int | None = flag(
        None,
        "Cache",
        "Load cached runs of at least so many tokens, compute shorter ones; default: by cost.",
        size=True,
    )
    kv_events_config: dict[str, Any] = flag(
        None,
        "Cache",
        "JSON object: enable_kv_cache_events, publisher (zmq or null), endpoint, replay_endpoint, "
        "buffer_steps, hwm, max_queue_size, topic.",
    )
    max_num_seqs: int | None = flag(
        None, "Scheduler", "Most sequences that run at once; default 128 serving, 256 offline."
    )
    max_num_batched_tokens: int | None = flag(
        None, "Scheduler", "Tokens a step; default 2048 serving, 4096 offline.", size=True
    )
    enable_chunked_prefill: bool = flag(
        True, "Scheduler", "Let a prompt be computed over several steps."
    )
    long_prefill_token_threshold: int = flag(
        0, "Scheduler", "Most tokens of one prompt a step; 0: no limit.", size=True
    )
    scheduling_policy: str = flag(
        "fcfs", "Scheduler", "Order of the queue.", choices=("fcfs", "priority")
    )
    enable_prefix_aware_scheduling: bool = flag(
        False, "Scheduler", "Among the oldest that wait, start those whose prefixes are cached."
    )
    scheduler_window_size: int = flag(
        10, "Scheduler", "How many of the oldest that is; nobody is overtaken by as many."
    )
    enable_async_prefetching: bool = flag(
        False, "Scheduler", "Bring up from slower tiers what requests of the window will need."
    )
    preemption_mode: str = flag(
        "recompute",
        "Scheduler",
        "What becomes of a request that must make room: recompute, or swap: its KVs wait in the "
        "host tier.",
        choices=("recompute", "swap"),
    )
    max_num_queued_reqs: int | None = flag(
        None, "Scheduler", "Most requests that wait; more are refused with 503."
    )
    max_num_queued_tokens: int | None = flag(
        None, "Scheduler", "Most prompt tokens that wait; more are refused with 503.", size=True
    )
    tensor_parallel_size: int = flag(
        1, "Parallel", "Ranks that share one model; only 1 for now.", short="-tp"
    )
    disable_log_stats: bool = flag(
        False, "Observability", "No statistics: no log line, no metrics."
    )
    prefix_metrics: str | None = flag(
        None,
        "Observability",
        "Write which request and which block reused what to PREFIX_requests.jsonl and "
        "PREFIX_blocks.jsonl, at the end and when asked to.",
    )
    kv_cache_metrics: bool = flag(
        False, "Observability", "Metrics of how long cached blocks live, by a sample of them."
    )
    kv_cache_metrics_sample: float = flag(
        0.01, "Observability", "Share of the blocks that are sampled for it."
    )
    profiler_config: dict[str, Any] = flag(
        None,
        "Observability",
        "JSON object: torch_profiler_dir (also VLLM_TORCH_PROFILER_DIR), "
        "torch_profiler_record_shapes, torch_profiler_with_stack, torch_profiler_with_memory, "
        "max_iterations.",
    )

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

    @classmethod
    def from_mapping(cls, values: Any) -> EngineArgs:
        """From a namespace or mapping that may hold other things too."""
        values = values if isinstance(values, dict) else vars(values)
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    simulator: str | None = flag(
        None,
        "Simulator",
        "Run without a model: tokens echo the prompt, are random, or follow a trace's lengths.",
        choices=("echo", "random", "trace"),
    )
    simulator_model: str | None = flag(
        None, "Simulator", "A well-known model whose sizes to take, as llama-3-8b."
    )
    simulator_latency: str = flag(
        "linear",
        "Simulator",
        "How long a step takes: constant, linear, roofline (each with :name=number,...), or "
        "table:PATH.",
    )
    simulator_clock: str = flag(
        "wall",
        "Simulator",
        "Wall: steps take their time. Virtual: they do not, the same results come at once.",
        choices=("wall", "virtual"),
    )
    simulator_trace: str | None = flag(
        None, "Simulator", "JSONL whose k-th line has the k-th request's output_length."
    )
    simulator_host_bandwidth: float = flag(
        20e9, "Simulator", "Bytes a second between the device and the host tier."
    )
    simulator_disk_bandwidth: float = flag(
        2e9, "Simulator", "Bytes a second between the disk tier and the others."
    )
    simulator_failures: str = flag(
        "",
        "Simulator",
        "What goes wrong: name=number,... with the shares tier (reads and writes of tiers), "
        "request, stream (outputs that end with an error, at once or under way), stall (steps "
        "that take seconds longer), and crash (the step at which the engine dies).",
    )

    def create_engine_config(self, *, serving: bool = False) -> VllmConfig:
        """Check everything and read the model's files (not its weights). Raises ValueError."""
        self.refuse()
        check_types(self)
        if self.tensor_parallel_size != 1:
            raise ValueError("tensor_parallel_size: only 1 is supported for now")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization must be in (0, 1], not {self.gpu_memory_utilization}"
            )
        if self.trust_remote_code:
            logger.info("trust_remote_code has no effect: code from model folders is never run.")
        model = self._model()
        return VllmConfig(
            model=model,
            cache=self._cache(),
            scheduler=self._scheduler(serving),
            load=LoadConfig(self._weights_format),
            device=self._device(),
            disable_log_stats=self.disable_log_stats,
            prefix_metrics=self._prefix_metrics(),
            simulator=self._simulator(),
            compression=self.compression(model, self.seed),
            profiler=self._profiler(),
        )

    @property
    def _weights_format(self) -> str:
        """A simulated engine has no weights, so none are looked for."""
        return self.load_format if self.simulator is None else "dummy"

    def _geometry(self) -> dict[str, Any]:
        if self.simulator_model is None:
            return {}
        if self.simulator is None:
            raise ValueError("simulator_model needs simulator")
        return geometry(self.simulator_model)

    def _simulator(self) -> SimulatorConfig | None:
        if self.simulator is None:
            return None
        if (self.simulator == "trace") != (self.simulator_trace is not None):
            raise ValueError("simulator trace and simulator_trace need each other")
        for name in ("simulator_host_bandwidth", "simulator_disk_bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        return SimulatorConfig(
            mode=self.simulator,
            latency=self.simulator_latency,
            clock=self.simulator_clock,
            trace=self.simulator_trace,
            host_bandwidth=self.simulator_host_bandwidth,
            disk_bandwidth=self.simulator_disk_bandwidth,
            failures=parse_failures(self.simulator_failures),
        )

    def _profiler(self) -> ProfilerConfig | None:
        given = dict(self.profiler_config or {})
        if given.pop("profiler", "torch") != "torch":
            raise ValueError("profiler_config.profiler: only torch is supported")
        given.setdefault("torch_profiler_dir", os.environ.get("VLLM_TORCH_PROFILER_DIR"))
        hints = get_type_hints(ProfilerConfig)
        for name, value in given.items():
            if name not in hints:
                raise ValueError(
                    f"profiler_config.{name} is not known; there are {', '.join(hints)}"
                )
            if name != "torch_profiler_dir" and type(value) is not hints[name]:
                raise ValueError(f"profiler_config.{name} must be of type {hints[name].__name__}")
        if not given["torch_profiler_dir"]:
            if self.profiler_config:
                raise ValueError("profiler_config needs torch_profiler_dir")
            return None
        config = ProfilerConfig(**given)
        if config.max_iterations < 1:
            raise ValueError("profiler_config.max_iterations must be at least 1")
        return config

    def _model(self) -> ModelConfig:
        folder = hub.resolve(
            self.model,
            revision=self.revision,
            download_dir=self.download_dir,
            weights=self._weights_format != "dummy",
        )
        tokenizer = folder
        if self.tokenizer:
            tokenizer = hub.resolve(
                self.tokenizer,
                revision=self.tokenizer_revision,
                download_dir=self.download_dir,
                weights=False,
                tokenizer_only=True,
            )
        hf = read_json(folder / "config.json") | self._geometry() | (self.hf_overrides or {})
        generation, eos = read_generation(
            folder, self.generation_config, self.override_generation_config or {}, hf
        )
        if self.max_logprobs < -1:
            raise ValueError(f"max_logprobs must be at least -1, not {self.max_logprobs}")
        return ModelConfig(
            folder=folder,
            name=self.model or self.simulator_model or "demo",
            tokenizer_folder=tokenizer,
            hf=hf,
            dtype=resolve_dtype(self.dtype, hf),
            max_model_len=resolve_max_len(
                self.max_model_len,
                hf,
                allow_longer=os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1",
            ),
            max_len_given=self.max_model_len is not None,
            seed=self.seed,
            skip_tokenizer_init=self.skip_tokenizer_init,
            max_logprobs=self.max_logprobs,
            generation=generation,
            eos_token_ids=eos,
            chat_template=_template(self.chat_template),
        )

    def _cache(self) -> CacheConfig:
        _at_least(self, "block_size", 1)
        _at_least(self, "num_gpu_blocks_override", 1)
        _at_least(self, "kv_cache_memory_bytes", 1)
        policy = self.kv_eviction_policy
        if policy.partition(":")[0] not in EVICTION_POLICIES:
            raise ValueError(
                f"kv_eviction_policy must be one of {', '.join(EVICTION_POLICIES)}, not {policy!r}"
            )
        memory = self.kv_cache_memory_bytes
        if memory is None:
            asked = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
            try:
                memory = int(float(asked) * 2**30) if asked else self._default_kv_bytes()
            except (ValueError, OverflowError):
                raise ValueError(
                    f"VLLM_CPU_KVCACHE_SPACE must be a number of GiB, not {asked!r}"
                ) from None
        return CacheConfig(
            block_size=self.block_size,
            memory_bytes=memory,
            num_blocks=self.num_gpu_blocks_override,
            enable_prefix_caching=self.enable_prefix_caching,
            eviction_policy=self.kv_eviction_policy,
            tiers=self._tiers(),
            metrics_sample=self._sample(),
            events=_events(self.kv_events_config or {}),
        )

    def _prefix_metrics(self) -> str | None:
        prefix = self.prefix_metrics
        if prefix is not None and not (Path(prefix).name and Path(prefix).parent.is_dir()):
            raise ValueError(f"prefix_metrics: {prefix!r} is in no folder that is there")
        return prefix

    def _sample(self) -> float:
        if not 0 < self.kv_cache_metrics_sample <= 1:
            raise ValueError("kv_cache_metrics_sample must be above 0 and at most 1")
        return self.kv_cache_metrics_sample if self.kv_cache_metrics else 0.0

    def _default_kv_bytes(self) -> int:
        """4 GiB, or 40% of the memory that is free now when that is less.

        A simulated engine needs no memory, and its results must not depend on the machine.
        """
        if self.simulator is not None:
            return DEFAULT_KV_GIB << 30
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return DEFAULT_KV_GIB << 30
        return min(DEFAULT_KV_GIB << 30, int(free * 0.4))

    def _tiers(self) -> TierConfig | None:
        """None without tiers. Raises ValueError for flags that cannot go together."""
        for name in ("num_cpu_blocks_override", "disk_cache_size"):
            _at_least(self, name, 1)
        for name in ("swap_space", "kv_offloading_size", "min_load_tokens"):
            _at_least(self, name, 0)
        asked = self.enable_multi_tier_prefix_caching or self.kv_offloading_size is not None
        self._check_shared()
        if not asked and self.shared_cache is None:
            for name in ("disk_cache_dir", "num_cpu_blocks_override", "min_load_tokens"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs enable_multi_tier_prefix_caching")
            return None
        if not self.enable_prefix_caching:
            raise ValueError(
                "multi-tier prefix caching needs prefix caching; drop --no-enable-prefix-caching"
            )
        size = self.swap_space if self.kv_offloading_size is None else self.kv_offloading_size
        if not asked:  # a shared cache alone
            size = 0
            for name in ("num_cpu_blocks_override", "disk_cache_dir"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs enable_multi_tier_prefix_caching")
        if not (size or self.num_cpu_blocks_override):
            if self.disk_cache_dir is None and self.shared_cache is None:
                raise ValueError(
                    "multi-tier prefix caching has no tier: give swap_space or disk_cache_dir"
                )
            if self.preemption_mode == "swap":
                raise ValueError("preemption_mode swap needs a host tier: give swap_space")
        return TierConfig(
            host_bytes=int(size * 2**30),
            host_blocks=self.num_cpu_blocks_override,
            disk_dir=self.disk_cache_dir,
            disk_bytes=self.disk_cache_size,
            asynchronous=self.enable_async_swapping,
            min_load_tokens=self.min_load_tokens,
            shared=self.shared_cache,
            shared_bytes=self.shared_cache_size
            or (DEFAULT_SHARED_BYTES if self.shared_cache else 0),
        )

    def _check_shared(self) -> None:
        _at_least(self, "shared_cache_size", 1)
        scheme = (self.shared_cache or "").partition("://")[0]
        if self.shared_cache_size is not None and scheme != "file":
            raise ValueError("shared_cache_size is for a shared_cache of files, file:///folder")
        if self.shared_cache is not None and self.simulator is not None:
            raise ValueError("shared_cache: a simulated engine has no shared tier")

    def _scheduler(self, serving: bool) -> SchedulerConfig:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_queued_reqs",
            "max_num_queued_tokens",
        ):
            _at_least(self, name, 1)
        _at_least(self, "long_prefill_token_threshold", 0)
        _at_least(self, "scheduler_window_size", 1)
        if self.enable_prefix_aware_scheduling and not self.enable_prefix_caching:
            raise ValueError("prefix-aware scheduling needs prefix caching")
        tiered = self._tiers() is not None
        if self.enable_async_prefetching:
            if not tiered:
                raise ValueError(
                    "enable_async_prefetching needs enable_multi_tier_prefix_caching: there is "
                    "nothing to fetch from"
                )
            if not self.enable_async_swapping:
                raise ValueError(
                    "enable_async_prefetching needs enable_async_swapping: fetching ahead between "
                    "steps would only hold them up"
                )
        if self.preemption_mode == "swap" and not tiered:
            raise ValueError(
                "preemption_mode swap needs enable_multi_tier_prefix_caching: there is no tier to "
                "swap to"
            )
        seqs = self.max_num_seqs or (128 if serving else 256)
        tokens = self.max_num_batched_tokens or max(2048 if serving else 4096, seqs)
        if tokens < seqs:
            raise ValueError(
                f"max_num_batched_tokens ({tokens}) must be at least max_num_seqs ({seqs})"
            )
        return SchedulerConfig(
            policy=self.scheduling_policy,
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            enable_chunked_prefill=self.enable_chunked_prefill,
            long_prefill_token_threshold=self.long_prefill_token_threshold,
            max_num_queued_reqs=self.max_num_queued_reqs,
            max_num_queued_tokens=self.max_num_queued_tokens,
            window_size=self.scheduler_window_size if self.enable_prefix_aware_scheduling else 1,
            swap=self.preemption_mode == "swap",
            prefetch=self.scheduler_window_size if self.enable_async_prefetching else 0,
        )

    def _device(self) -> DeviceConfig:
        _at_least(self, "cpu_threads", 1)
        # The GPU's kernels are not here yet, so auto is the CPU; see docs/roadmap.md.
        device = "cpu" if self.device == "auto" else self.device
        if os.environ.get("VLLM_PLATFORM") == "cpu":
            device = "cpu"
        kernels = self.kernels
        if kernels == "auto" and os.environ.get("VLLM_ATTENTION_BACKEND") == "TORCH_SDPA":
            kernels = "reference"
        return DeviceConfig(device=device, kernels=kernels, threads=self.cpu_threads)


@dataclass
class AsyncEngineArgs(EngineArgs):
    """The arguments of an engine that serves."""


def _at_least(args: EngineArgs, name: str, low: int) -> None:
    value = getattr(args, name)
    if value is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")


def _events(given: dict[str, Any]) -> EventsConfig | None:
    """None unless they are enabled. Raises ValueError naming the field at fault."""
    fields_ = {f.name: f for f in fields(EventsConfig)}
    unknown = set(given) - set(fields_) - {"enable_kv_cache_events", "publisher"}
    if unknown:
        raise ValueError(f"kv_events_config has no field {sorted(unknown)[0]!r}")
    if given.get("publisher", "zmq") not in ("zmq", "null"):
        raise ValueError(
            f"kv_events_config.publisher must be zmq or null, not {given['publisher']!r}"
        )
    values = {name: value for name, value in given.items() if name in fields_}
    enabled = given.get("enable_kv_cache_events", False)
    if not isinstance(enabled, bool):
        raise ValueError(f"kv_events_config.enable_kv_cache_events cannot be {enabled!r}")
    for name, value in values.items():
        number = name in ("buffer_steps", "hwm", "max_queue_size")
        good = type(value) is int and value >= 1 if number else isinstance(value, str)
        if not (good or (name == "replay_endpoint" and value is None)):
            raise ValueError(f"kv_events_config.{name} cannot be {value!r}")
    return EventsConfig(**values) if enabled and given.get("publisher", "zmq") == "zmq" else None


def _template(given: str | None) -> str | None:
    """The text of a chat template that was given as a file's path or as itself."""
    if given is None or "{" in given or "\n" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"chat_template: there is no file {given}")
    return path.read_text(encoding="utf-8")


def config_to_json(args: EngineArgs) -> str:
    """The arguments as JSON, to hand them to another process."""
    return json.dumps(dataclasses.asdict(args))
