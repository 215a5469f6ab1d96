"""The engine's configuration: cache, scheduler, kernels. Frozen once made."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.compression import CompressionSettings
from vllm.config.failures import Failures
from vllm.config.model import ModelConfig


@dataclass(frozen=True, slots=True)
class TierConfig:
    """The tiers below the device, and how blocks move between them."""

    host_bytes: int
    host_blocks: int | None  # when given, decides instead
    disk_dir: str | None
    disk_bytes: int
    asynchronous: bool
    min_load_tokens: int | None
    shared: str | None = None  # a URL
    shared_bytes: int = 0  # of the files of a file:// URL


@dataclass(frozen=True, slots=True)
class EventsConfig:
    """Where KV events are published. vLLM's names and defaults, but for the loopback address."""

    endpoint: str = "tcp://127.0.0.1:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000  # batches that can be told again
    hwm: int = 100_000  # batches that wait for a slow reader
    max_queue_size: int = 100_000  # batches that wait for the socket
    topic: str = ""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    block_size: int  # tokens a block
    memory_bytes: int  # for the arena; num_blocks, when given, decides instead
    num_blocks: int | None
    enable_prefix_caching: bool
    eviction_policy: str = "lru"
    tiers: TierConfig | None = None
    metrics_sample: float = 0.0  # share of the blocks whose lives are told
    events: EventsConfig | None = None


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    policy: str  # fcfs or priority
    max_num_seqs: int  # sequences running at once
    max_num_batched_tokens: int  # tokens a step
    enable_chunked_prefill: bool
    long_prefill_token_threshold: int  # 0: none; else no step computes more of one prompt
    max_num_queued_reqs: int | None
    max_num_queued_tokens: int | None
    window_size: int = 1  # how many of the oldest are ordered by what is cached; 1: none
    swap: bool = False  # preempted sequences go aside, where there is room
    prefetch: int = 0  # how many of the oldest have their blocks brought up ahead


@dataclass(frozen=True, slots=True)
class LoadConfig:
    load_format: str  # auto, safetensors or dummy


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    device: str  # cpu or cuda
    kernels: str  # auto, reference or a kernel set's name
    threads: int | None  # of the CPU kernels; None: as many as the process may use


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """The engine without a model; see `vllm.simulator`."""

    mode: str  # echo, random or trace
    latency: str  # a model of latency with its parameters
    clock: str  # wall or virtual
    trace: str | None  # JSONL with output lengths
    host_bandwidth: float  # bytes a second
    disk_bandwidth: float
    failures: Failures


@dataclass(frozen=True, slots=True)
class ProfilerConfig:
    """What torch's profiler records, and where to."""

    torch_profiler_dir: str
    torch_profiler_record_shapes: bool = False
    torch_profiler_with_stack: bool = False
    torch_profiler_with_memory: bool = False
    max_iterations: int = 1000  # steps, after which it stops by itself


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """All that an engine is built from."""

    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    load: LoadConfig
    device: DeviceConfig
    disable_log_stats: bool
    prefix_metrics: str | None = None  # path and beginning of two files' names
    simulator: SimulatorConfig | None = None
    compression: CompressionSettings | None = None  # None: no request is compressed
    profiler: ProfilerConfig | None = None
