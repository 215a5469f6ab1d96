"""Many streams at once from the asynchronous engine, whose core runs in a process of its own.

python examples/async_stream.py [MODEL]
"""

import asyncio
import sys

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


async def stream(engine: AsyncLLMEngine, number: int) -> str:
    prompt = f"The code of amber-fox is 48{number}1. The code of amber-fox is"
    params = SamplingParams(temperature=0, max_tokens=8)
    text = ""
    async for output in engine.generate(prompt, params, f"stream-{number}"):
        text = output.outputs[0].text
    return text


async def main() -> None:
    args = AsyncEngineArgs(model=sys.argv[1] if len(sys.argv) > 1 else None)
    engine = AsyncLLMEngine.from_engine_args(args)
    try:
        for text in await asyncio.gather(*(stream(engine, i) for i in range(4))):
            print(text.strip())
    finally:
        engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
