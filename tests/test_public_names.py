"""What programs may import, and from where; and that `import vllm` stays cheap."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import vllm

NAMES = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "CompletionOutput",
    "EngineArgs",
    "LLMEngine",
    "Logprob",
    "PromptType",
    "RequestOutput",
    "SamplingParams",
    "TextPrompt",
    "TokensPrompt",
    "VLLMValidationError",
    "__version__",
    "__version_tuple__",
]

DOORS = {
    "vllm.sampling_params": [
        "SamplingParams",
        "RequestOutputKind",
        "BeamSearchParams",
        "StructuredOutputsParams",
    ],
    "vllm.v1.metrics.reader": ["Counter", "Gauge", "Histogram", "Metric", "Vector"],
    "vllm.outputs": ["RequestOutput", "CompletionOutput", "RequestStateStats"],
    "vllm.logprobs": ["Logprob"],
    "vllm.exceptions": ["VLLMValidationError"],
    "vllm.inputs": ["TextPrompt", "TokensPrompt", "PromptType"],
    "vllm.config": ["EngineArgs", "ModelConfig", "VllmConfig"],
    "vllm.engine.arg_utils": ["EngineArgs", "AsyncEngineArgs"],
    "vllm.engine.llm_engine": ["LLMEngine"],
    "vllm.engine.async_llm_engine": ["AsyncLLMEngine"],
    "vllm.v1.engine.async_llm": ["AsyncLLM"],
    "vllm.entrypoints.llm": ["LLM"],
    "vllm.utils": ["FlexibleArgumentParser"],
    "vllm.utils.argparse_utils": ["FlexibleArgumentParser"],
    "vllm.tokenizers": ["get_tokenizer"],
    "vllm.lora.request": ["LoRARequest"],
    "vllm.renderers.hf": ["resolve_chat_template"],
    "vllm.entrypoints.chat_utils": ["resolve_hf_chat_template"],
}


def test_all_is_exactly_the_list() -> None:
    assert sorted(vllm.__all__) == sorted(NAMES)
    assert dir(vllm) == sorted(vllm.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_had(name: str) -> None:
    assert getattr(vllm, name) is not None
    home = vllm._HOMES.get(name)
    if home is not None:
        assert getattr(vllm, name) is getattr(importlib.import_module(home), name)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'vllm' has no attribute 'PoolingParams'"):
        vllm.PoolingParams  # noqa: B018
    with pytest.raises(ImportError):
        from vllm import nothing_of_the_kind  # noqa: F401


@pytest.mark.parametrize("door", DOORS)
def test_old_doors_are_open(door: str) -> None:
    module = importlib.import_module(door)
    for name in DOORS[door]:
        assert hasattr(module, name), name
        if name in NAMES and door != "vllm.engine.llm_engine":
            assert getattr(module, name) is getattr(vllm, name)


def test_async_llm_is_the_async_engine() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    assert AsyncLLM is vllm.AsyncLLMEngine
    assert callable(AsyncLLM.from_engine_args)


def test_the_version_is_one() -> None:
    parts = vllm.__version__.split(".")
    assert tuple(int(p) for p in parts[:2]) == vllm.__version_tuple__[:2]
    assert vllm.__version_tuple__ >= (0, 9)


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


HEAVY = {"torch", "transformers", "fastapi", "zmq", "jinja2", "numpy", "huggingface_hub"}


def test_importing_vllm_loads_nothing_heavy() -> None:
    assert not loaded_after("import vllm") & HEAVY


@pytest.mark.parametrize(
    "statement",
    [
        "from vllm import SamplingParams, EngineArgs, RequestOutput, TextPrompt",
        "from vllm.engine.arg_utils import EngineArgs",
        "from vllm.utils import FlexibleArgumentParser",
        "from vllm import LLM, LLMEngine, AsyncLLMEngine",
    ],
)
def test_the_names_load_neither_torch_nor_transformers(statement: str) -> None:
    assert not loaded_after(statement) & {"torch", "transformers"}


def test_get_tokenizer_gives_the_transformers_tokenizer() -> None:
    from vllm.config import hub
    from vllm.tokenizers import get_tokenizer

    tokenizer = get_tokenizer(str(hub.demo_model()))
    assert tokenizer.decode(tokenizer.encode("The code is 12.")).endswith("The code is 12.")
    with pytest.raises(ValueError, match="tokenizer_mode"):
        get_tokenizer(str(hub.demo_model()), tokenizer_mode="slow")
