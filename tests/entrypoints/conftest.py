from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from vllm import LLM

from .openai import whole_words
from .openai.fake_engine import FakeEngine

MakeEngine = Callable[..., FakeEngine]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_words.write(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make_engine(tokenizer_folder: Path) -> MakeEngine:
    """Makes an engine that may be given engine arguments. Its tokenizer is the tests' own."""
    return partial(FakeEngine, tokenizer=str(tokenizer_folder))


@pytest.fixture
def engine(make_engine: MakeEngine) -> FakeEngine:
    return make_engine()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(max_model_len=128, max_num_seqs=8, num_gpu_blocks_override=200, kernels="reference")
    yield llm
    llm.shutdown()


@pytest.fixture(autouse=True)
def left_clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves `llm` with no request and no held block."""
    yield
    if "llm" in request.fixturenames:
        engine = request.getfixturevalue("llm").llm_engine
        assert not engine.has_unfinished_requests()
        engine.core.check()
        assert engine.core.scheduler.kv.usage == 0
