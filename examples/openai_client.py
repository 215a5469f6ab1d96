"""A conversation with a running server through the `openai` client, streamed.

make serve                            # in another terminal
python examples/openai_client.py [URL]
"""

import sys

from openai import OpenAI


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    messages = [{"role": "system", "content": "The code of amber-fox is 4821."}]
    for question in ("What is the code of amber-fox?", "Thanks!"):
        messages.append({"role": "user", "content": question})
        stream = client.chat.completions.create(model=model, messages=messages, stream=True)
        answer = ""
        print(f"> {question}")
        for chunk in stream:
            piece = chunk.choices[0].delta.content or "" if chunk.choices else ""
            answer += piece
            print(piece, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
