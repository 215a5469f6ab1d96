"""Engines over tiny random models, whose compressions are written down."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from model_executor.harness import make_case
from torch import Tensor
from transformers import LlamaConfig

from vllm.config import EngineArgs
from vllm.config.compression import CompressionSettings
from vllm.core.compression import CompressionParams, CompressionStats
from vllm.core.plan import StepPlan
from vllm.core.request import EngineRequest
from vllm.engine.core import EngineCore
from vllm.entrypoints.executor import make_executor
from vllm.kernels import head_blocks
from vllm.sampling_params import SamplingParams

LAYERS, HEADS, DIM, VOCAB = 2, 4, 16, 96


def checkpoint(folder: Path, kv_heads: int = 2) -> Path:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HEADS * DIM,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    make_case(folder, config)
    return folder


@dataclass
class Event:
    """One compression: the sequence had `tokens` tokens, and each head kept these positions."""

    seq: int
    tokens: int
    kept: Tensor  # int64 [L, H, K], -1 padding


@dataclass
class Ran:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)  # float32 [V] each
    cached: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    preemptions: int = 0
    stats: CompressionStats | None = None
    reason: str | None = None


class Engine:
    """An engine core in this process; blocks that nobody holds are NaN before every step."""

    def __init__(
        self,
        folder: Path,
        settings: CompressionSettings | None = None,
        *,
        compression: bool = True,
        **options,
    ) -> None:
        args = EngineArgs(
            **{
                "model": str(folder),
                "skip_tokenizer_init": True,
                "dtype": "float32",
                "kernels": "reference",
                "cpu_threads": 1,
                "block_size": 4,
                "max_model_len": 256,
                "num_gpu_blocks_override": 256,
                "max_num_seqs": 6,
                "max_num_batched_tokens": 512,
                "max_logprobs": -1,
            }
            | options
        )
        self.settings = settings or CompressionSettings()
        config = dataclasses.replace(
            args.create_engine_config(), compression=self.settings if compression else None
        )
        self.core = EngineCore(config, make_executor)
        self.kv = self.core.scheduler.kv
        self.runner = self.core.executor.model_runner
        self.events: list[Event] = []
        self.plans: list[StepPlan] = []
        self._watch()

    def _watch(self) -> None:
        executor, runner = self.core.executor, self.runner
        compressor, plain = runner._compressor, executor.execute
        runner.kv.fill_(math.nan)

        def execute(plan):
            self.poison()
            self.core.check()
            self.plans.append(plan)
            return plain(plan)

        executor.execute = execute
        if compressor is None:
            return
        carry_out = compressor.compress

        def compress(order, rows):
            lengths = carry_out(order, rows)
            kept = compressor._watched[order.seq].kept
            self.events.append(Event(order.seq, order.tokens, kept.clone()))
            return lengths

        compressor.compress = compress

    def poison(self) -> None:
        slabs, arena = self.kv._heads.slabs, self.runner.kv
        arena[torch.tensor(self.kv.pool._free, dtype=torch.int64)] = math.nan
        spare = [i for ids in slabs._free.values() for i in ids]
        head_blocks(arena)[torch.tensor(spare, dtype=torch.int64)] = math.nan

    def request(
        self,
        name: str,
        prompt: list[int],
        params: CompressionParams | None = None,
        *,
        max_tokens: int = 12,
        logprobs: bool = True,
        salt: str | None = None,
        **sampling,
    ) -> None:
        made = SamplingParams(
            **{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True} | sampling,
            logprobs=-1 if logprobs else None,
        )
        if params is not None:
            window = self.settings.window_of(params.metric)
            params = CompressionParams(
                **{f: getattr(params, f) for f in params.__struct_fields__} | {"window": window}
            )
        self.core.add(
            EngineRequest(
                request_id=name,
                prompt_token_ids=prompt,
                params=made,
                max_tokens=max_tokens,
                arrival=0.0,
                compression=params,
                cache_salt=salt,
            )
        )

    def run(self) -> dict[tuple[str, int], Ran]:
        ran: dict[tuple[str, int], Ran] = {}
        steps = 0
        while self.core.has_work:
            steps += 1
            assert steps < 3000, "it does not come to an end"
            for output in self.core.step().outputs:
                mine = ran.setdefault((output.request_id, output.index), Ran())
                mine.tokens += output.token_ids
                for told in output.logprobs or ():
                    line = torch.empty(VOCAB)
                    line[torch.tensor(told.ids)] = torch.tensor(told.logprobs)
                    mine.logprobs.append(line)
                mine.cached, mine.preemptions = output.num_cached_tokens, output.preemptions
                mine.sources = output.cached_by_source
                mine.stats, mine.reason = output.compression, output.finish_reason
        self.core.check()
        assert self.kv.usage == 0
        assert len(self.kv._heads.slabs) == 0
        return ran

    def one(self, prompt: list[int], params: CompressionParams | None = None, **more) -> Ran:
        self.request("one", prompt, params, **more)
        return self.run()["one", 0]


def prompt(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)
