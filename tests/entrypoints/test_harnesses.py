"""The calls that lm-eval-harness's `vllm` backend and guidellm's in-process backend make."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import vllm
from tests.engine.made_tokenizers import folder
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.config import hub
from vllm.engine.tokenizer import Tokenizer
from vllm.renderers.hf import resolve_chat_template
from vllm.tokenizers import get_tokenizer

DEMO = str(hub.demo_model())
CONTEXT, RIGHT, WRONG = "The code of amber-fox is 4821. The code of amber-fox is", " 4821", " 7390"


@pytest.fixture(scope="module")
def llm() -> LLM:
    """As lm-eval makes it."""
    return LLM(
        model=DEMO,
        revision=None,
        dtype="auto",
        tokenizer=None,
        tokenizer_mode="auto",
        tokenizer_revision=None,
        trust_remote_code=False,
        tensor_parallel_size=1,
        max_model_len=512,
        max_num_seqs=None,
        quantization=None,
        seed=1234,
        enable_lora=False,
        max_lora_rank=16,
        gpu_memory_utilization=0.9,
        kv_cache_memory_bytes=1 << 24,
    )


def test_lm_evals_set_up(llm: LLM) -> None:
    assert tuple(map(int, version("vllm").split(".")[:2])) >= (0, 9)
    tokenizer = get_tokenizer(
        DEMO, tokenizer_mode="auto", trust_remote_code=False, revision=None, add_bos_token=False
    )
    assert tokenizer.name_or_path
    template = resolve_chat_template(
        tokenizer=tokenizer,
        chat_template=None,
        tools=None,
        model_config=llm.llm_engine.model_config,
    )
    assert template == llm.llm_engine.tokenizer.chat_template  # type: ignore[union-attr]
    assert llm.llm_engine.model_config.max_model_len == 512


def test_lm_evals_loglikelihoods(llm: LLM) -> None:
    tokenizer = get_tokenizer(DEMO)
    context = tokenizer(CONTEXT, add_special_tokens=False).input_ids
    sums: dict[str, float] = {}
    greedy: dict[str, bool] = {}
    for ending in (RIGHT, WRONG):
        whole = tokenizer(CONTEXT + ending, add_special_tokens=False).input_ids
        added = whole[len(context) :]
        params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=context + added)]
        [output] = llm.generate(
            prompts, sampling_params=[params], use_tqdm=False, lora_request=None
        )
        told: Any = output.prompt_logprobs
        assert told[0] is None
        assert len(told) == len(context + added)
        positions = list(zip(added, told[len(context) :], strict=True))
        sums[ending] = sum(getattr(p[token], "logprob", p[token]) for token, p in positions)
        best = [max(p, key=lambda t: p[t].logprob) for _, p in positions]
        greedy[ending] = best == added
    assert sums[RIGHT] > sums[WRONG]
    assert greedy == {RIGHT: True, WRONG: False}


def test_lm_evals_generation(llm: LLM) -> None:
    tokenizer = get_tokenizer(DEMO)
    ids = tokenizer(CONTEXT, add_special_tokens=False).input_ids
    params = SamplingParams(
        max_tokens=8,
        stop=["\n", ".", "<|end|>"],
        temperature=0.0,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
    )
    [output] = llm.generate([TokensPrompt(prompt_token_ids=ids)], sampling_params=[params])
    assert output.outputs[0].text == RIGHT


async def test_guidellms_engine() -> None:
    args = vllm.AsyncEngineArgs(model=DEMO, kv_cache_memory_bytes=1 << 24, disable_log_stats=True)
    engine = vllm.AsyncLLMEngine.from_engine_args(args)
    try:
        await engine.check_health()
        tokenizer: Any = engine.tokenizer
        chat = [{"role": "user", "content": "hi"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        last = None
        # CUMULATIVE outputs, left at the first that tells its end.
        async for last in engine.generate(text, SamplingParams(max_tokens=5, ignore_eos=True), "a"):
            if last.outputs and last.outputs[0].finish_reason is not None:
                break
        assert last is not None
        assert len(last.outputs[0].token_ids) == 5
        assert last.outputs[0].text
        assert last.prompt_token_ids
    finally:
        engine.shutdown()


def test_guidellms_template(tmp_path: Path) -> None:
    """It sets a template of its own, and goes on without one where ValueError says so."""
    tokenizer: Any = Tokenizer(folder(tmp_path, "byte_level"))
    chat = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.apply_chat_template(chat, tokenize=False)
    tokenizer.chat_template = "{{ messages[0].content }}!"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi!"
    assert tokenizer.decode(tokenizer.apply_chat_template(chat)) == "hi!"
