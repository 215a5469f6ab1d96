"""Two servers that share a folder: what one has computed, the other loads.

vllm serve --port 8000 --shared-cache file:///tmp/kv &
vllm serve --port 8001 --shared-cache file:///tmp/kv &
python examples/shared_cache.py http://127.0.0.1:8000 http://127.0.0.1:8001
"""

import sys
import time

from openai import OpenAI

QUESTION = "The code of amber-fox is 4821. " * 10 + "What is the code of amber-fox?"

for url in sys.argv[1:]:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=8,
        temperature=0,
    )
    cached = answer.usage.prompt_tokens_details.model_extra.get("cached_tokens_by_source", {})
    print(f"{url}: {answer.choices[0].message.content!r}, cached tokens: {cached}")
    time.sleep(2)  # an idle server copies what it has to the store
