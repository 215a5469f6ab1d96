"""Compression: one question about a long text, with less and less of the KV cache.

python examples/compression.py [MODEL]
"""

import sys

from vllm import LLM, SamplingParams


def main() -> None:
    llm = LLM(model=sys.argv[1] if len(sys.argv) > 1 else None, enable_kvc=True, block_size=8)
    filler = " ".join(f"The old mill near river {i} turns slowly." for i in range(60))
    text = f"The code of amber-fox is 4821. {filler} What is the code of amber-fox?"
    for kept in (None, 256, 128, 64):  # KVs a head, on average
        params = SamplingParams(
            temperature=0, max_tokens=16, max_cache_tokens=kept, protected_window_size=32
        )
        [output] = llm.chat([{"role": "user", "content": text}], params, use_tqdm=False)
        kvs = output.outputs[0].kv_compression
        print(f"{kvs.ratio:5.1f} times fewer KVs: {output.outputs[0].text.strip()}")
    print("KVs of each head, layer by layer:", llm.get_kv_head_lengths(output))


if __name__ == "__main__":
    main()
