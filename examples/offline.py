"""Offline: complete prompts and hold a chat, in this process.

python examples/offline.py [MODEL]
"""

import sys

from vllm import LLM, SamplingParams


def main() -> None:
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else None)
    facts = "The code of amber-fox is 4821. The code of lucky-owl is 7390."
    questions = [f"What is the code of {name}?" for name in ("amber-fox", "lucky-owl")]
    conversations = [[{"role": "user", "content": f"{facts} {q}"}] for q in questions]
    params = SamplingParams(temperature=0, max_tokens=16)
    for question, output in zip(questions, llm.chat(conversations, params), strict=True):
        print(f"{question} {output.outputs[0].text.strip()}")
    again = llm.chat(conversations[0], params)[0]
    print(f"Asked again: {again.num_cached_tokens} of {len(again.prompt_token_ids)} tokens cached")


if __name__ == "__main__":
    main()
