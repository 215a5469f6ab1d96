"""The flags of what vLLM has and this engine has not: each is known, and its reason is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from vllm.config.flags import flag


def refused(default: Any, reason: str, *, short: str | None = None, many: bool = False) -> Any:
    """An argument of which only the default is accepted."""
    return flag(default, "Refused", reason, short=short, many=many)


def idle(
    default: Any,
    reason: str,
    *,
    choices: tuple[str, ...] | None = None,
    short: str | None = None,
    many: bool = False,
) -> Any:
    """An argument that is accepted, since these values, or any, leave answers as they are."""
    return flag(default, "No effect", reason, choices=choices, short=short, many=many)


@dataclass(kw_only=True)
class AbsentArgs:
    """Those that are refused must keep their defaults; those without effect need not.

    Programs pass many of them with values that ask for nothing, and those must run.
    """

    pipeline_parallel_size: int = refused(
        1, "Pipeline parallelism is not implemented.", short="-pp"
    )
    data_parallel_size: int = refused(
        1, "One process serves one replica; start several behind a router.", short="-dp"
    )
    enable_expert_parallel: bool = refused(False, "Expert parallelism is not implemented.")
    enable_lora: bool = refused(False, "LoRA adapters are not implemented.")
    lora_modules: list[str] | None = refused(None, "LoRA adapters are not implemented.", many=True)
    speculative_config: dict[str, Any] = refused(None, "Speculative decoding is not implemented.")
    quantization: str | None = refused(None, "Quantised weights are not implemented.", short="-q")
    kv_cache_dtype: str = refused("auto", "The KV cache has the model's dtype.")
    cpu_offload_gb: float = refused(0.0, "Weights stay on the device.")
    kv_transfer_config: dict[str, Any] = refused(
        None, "KV connectors are not implemented; tiers are the engine's own (kv_offloading_size)."
    )
    limit_mm_per_prompt: dict[str, Any] = refused(None, "Multimodal input is not implemented.")
    mm_processor_kwargs: dict[str, Any] = refused(None, "Multimodal input is not implemented.")
    runner: str = refused("auto", "Only models that generate are implemented, no pooling ones.")
    convert: str = refused("auto", "Only models that generate are implemented, no pooling ones.")
    task: str = refused("auto", "Only models that generate are implemented, no pooling ones.")
    pooler_config: dict[str, Any] = refused(
        None, "Only models that generate are implemented, no pooling ones."
    )
    logits_processors: list[str] | None = refused(
        None, "Logits processors from outside are not implemented.", many=True
    )
    worker_cls: str = refused("auto", "Workers of one's own are not implemented.")
    worker_extension_cls: str = refused("", "Workers of one's own are not implemented.")
    scheduler_cls: str | None = refused(None, "Schedulers of one's own are not implemented.")
    enable_prompt_embeds: bool = refused(False, "Prompts are text or token ids.")
    hf_token: str | None = refused(None, "Set HF_TOKEN in the environment.")
    structured_outputs_config: dict[str, Any] = refused(
        None, "llguidance compiles structured outputs; there is nothing to configure."
    )
    model_loader_extra_config: dict[str, Any] = refused(None, "There is one way to load a model.")
    collect_detailed_traces: str | None = refused(None, "There is one span a request.")
    kv_cache_dtype_skip_layers: list[str] | None = refused(
        None, "The KV cache has the model's dtype.", many=True
    )
    stream_interval: int = refused(1, "Each token is streamed as it comes.")
    max_num_partial_prefills: int = refused(1, "Prompts share a step's tokens in order.")
    max_long_partial_prefills: int = refused(1, "Prompts share a step's tokens in order.")

    max_lora_rank: int = idle(16, "There are no LoRA adapters.")
    max_loras: int = idle(1, "There are no LoRA adapters.")
    enable_sleep_mode: bool = idle(False, "Any engine can sleep.")
    async_scheduling: bool = idle(False, "Steps are scheduled one after the other.")
    disable_custom_all_reduce: bool = idle(False, "There is one rank.")
    compilation_config: dict[str, Any] = idle(None, "Models are not compiled.", short="-cc")
    optimization_level: int = idle(2, "Models are not compiled.", short="-O")
    cudagraph_capture_sizes: list[int] | None = idle(None, "Sizes are chosen.", many=True)
    attention_backend: str | None = idle(None, "Kernels are chosen by kernels.", short="-ac")
    disable_cascade_attn: bool = idle(False, "There is no cascade attention.")
    disable_hybrid_kv_cache_manager: bool = idle(False, "There is one KV cache manager.")
    distributed_executor_backend: str | None = idle(
        None, "There is one rank.", choices=("uni", "mp")
    )
    prefix_caching_hash_algo: str = idle(
        "sha256", "Blocks are always named by SHA-256.", choices=("sha256",)
    )
    kv_offloading_backend: str = idle("native", "Tiers are the engine's own.", choices=("native",))
    logprobs_mode: str = idle(
        "raw_logprobs", "Logprobs are the model's own.", choices=("raw_logprobs",)
    )
    config_format: str = idle("auto", "There is one format.", choices=("auto", "hf"))
    code_revision: str | None = idle(None, "Code from model folders is never run.")
    allowed_local_media_path: str = idle("", "There is no multimodal input.")
    allowed_media_domains: list[str] | None = idle(None, "There is no multimodal input.", many=True)
    use_tqdm_on_load: bool = idle(True, "There is no bar while weights load.")
    show_hidden_metrics_for_version: str | None = idle(None, "No metric is hidden.")

    def refuse(self) -> None:
        """Raises ValueError naming a refused argument that asks for something."""
        for field in fields(AbsentArgs):
            if field.metadata["group"] != "Refused":
                continue
            value = getattr(self, field.name)
            neutral = (field.default, None, "generate") if field.type == "str" else (field.default,)
            if value not in neutral and value not in ({}, []):
                raise ValueError(f"{field.name}: {field.metadata['help']}")
