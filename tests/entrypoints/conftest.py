from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

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
