from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vllm import kernels
from vllm.kernels import Ops


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    try:
        return kernels.load("cpu", request.param)
    except RuntimeError as reason:
        pytest.skip(str(reason))
