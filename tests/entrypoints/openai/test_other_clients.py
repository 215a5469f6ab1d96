"""Clients that others wrote: LiteLLM, and OpenAI's library for Node."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from .conftest import real_server
from .fake_engine import FakeEngine

NODE = Path(__file__).parent / "node"
MESSAGES = [{"role": "user", "content": "The code of"}]
SAID = "<|bos|><|user|>The code of"


@pytest.fixture
async def url(engine: FakeEngine) -> AsyncIterator[str]:
    async with real_server(build_app(engine, ServerArgs(api_key=["secret"]))) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it asks the network
    import litellm

    return litellm


@pytest.mark.parametrize("provider", ["hosted_vllm", "openai"])
async def test_litellm(url: str, litellm: Any, provider: str) -> None:
    asked = {"model": f"{provider}/demo", "api_base": url, "api_key": "secret", "max_tokens": 5}
    whole = await litellm.acompletion(messages=MESSAGES, **asked)
    assert whole.choices[0].message.content == SAID
    assert whole.usage.completion_tokens == 5
    stream = await litellm.acompletion(messages=MESSAGES, stream=True, **asked)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == SAID
    with pytest.raises(litellm.BadRequestError, match="n must be"):
        await litellm.acompletion(messages=MESSAGES, n=-1, **asked)
    with pytest.raises(litellm.AuthenticationError):
        await litellm.acompletion(messages=MESSAGES, **(asked | {"api_key": "wrong"}))


async def test_litellm_completes_text(url: str, litellm: Any) -> None:
    told = await litellm.atext_completion(
        model="text-completion-openai/demo",
        prompt="The code of",
        api_base=url,
        api_key="secret",
        max_tokens=3,
    )
    assert told.choices[0].text == "The code of"


async def test_openai_for_node(url: str) -> None:
    """Needs node, and `npm ci` in the folder node: CI has both, and says so."""
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules").is_dir():
        why = f"node is {node}; `npm ci --prefix {NODE}` installs the client"
        assert os.environ.get("VLLM_TEST_NODE") != "1", why
        pytest.skip(why)
    process = await asyncio.create_subprocess_exec(
        node, str(NODE / "client.mjs"), url, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert json.loads(out) == {
        "models": ["demo"],
        "completion": ["The codeThe code", "The code codeThe", " of of of", " of of of"],
        "tokens": ["The", " code", "The", " code"],
        "whole": SAID,
        "streamed": SAID,
        "usage": 5,
        "response": SAID,
        "refusals": [
            ["NotFoundError", 404, "model"],
            ["BadRequestError", 400, "n"],
            ["AuthenticationError", 401, None],
        ],
    }
