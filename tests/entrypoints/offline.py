"""`LLM` on the demo model, and how its tests run it. Nothing here knows what the model says."""

from __future__ import annotations

from typing import Any

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

FEW = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
TEXTS = ["The code is", "Count with me: 1 2 3", "What is the capital?", "Once more"]


def run(llm: LLM, prompts: Any, params: Any = FEW, **more: Any) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False, **more)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in outputs]
