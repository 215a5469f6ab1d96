"""The flags of the scheduler: what runs next, how much of it, what waits and what makes room."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.engine import SchedulerConfig, TierConfig
from vllm.config.flags import at_least, flag


@dataclass(kw_only=True)
class SchedulerArgs:
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

    def make_scheduler(
        self, tiers: TierConfig | None, *, prefix_caching: bool, serving: bool
    ) -> SchedulerConfig:
        """Raises ValueError naming the argument at fault."""
        at_least(self, 1, "max_num_seqs", "max_num_batched_tokens", "scheduler_window_size")
        at_least(self, 1, "max_num_queued_reqs", "max_num_queued_tokens")
        at_least(self, 0, "long_prefill_token_threshold")
        if self.enable_prefix_aware_scheduling and not prefix_caching:
            raise ValueError("prefix-aware scheduling needs prefix caching")
        self._check_against(tiers)
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

    def _check_against(self, tiers: TierConfig | None) -> None:
        if self.enable_async_prefetching:
            if tiers is None:
                raise ValueError(
                    "enable_async_prefetching needs enable_multi_tier_prefix_caching: there is "
                    "nothing to fetch from"
                )
            if not tiers.asynchronous:
                raise ValueError(
                    "enable_async_prefetching needs enable_async_swapping: fetching ahead between "
                    "steps would only hold them up"
                )
        if self.preemption_mode == "swap":
            if tiers is None:
                raise ValueError(
                    "preemption_mode swap needs enable_multi_tier_prefix_caching: there is no "
                    "tier to swap to"
                )
            if not (tiers.host_bytes or tiers.host_blocks):
                raise ValueError("preemption_mode swap needs a host tier: give swap_space")
