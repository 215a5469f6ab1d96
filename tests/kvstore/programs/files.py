# The original's second example with its calls and arguments; only the package's name is another.
import numpy as np

from vllm.kvstore import KVCache, KVTensor
from vllm.kvstore.config import FileCacheConfig

config = FileCacheConfig(chunk_size=2, split_number=2, root="/tmp/vineyard/llm_cache")
cache = KVCache(cache_config=config, tensor_bytes=16, layer=2)

tokens = [1, 2, 3, 4]
given = []
for i in range(0, len(tokens), config.chunk_size):
    chunk = [
        [tuple(np.random.rand(2, 2).astype(np.float32) for _ in "kv") for _ in range(cache.layer)]
        for _ in range(config.chunk_size)
    ]
    given += chunk
    tensors = [
        [(KVTensor(k.ctypes.data, k.nbytes), KVTensor(v.ctypes.data, v.nbytes)) for k, v in token]
        for token in chunk
    ]
    updated = cache.update(tokens[:i], tokens[i : i + config.chunk_size], tensors)
    assert updated == config.chunk_size

found = [
    [tuple(np.empty((2, 2), dtype=np.float32) for _ in "kv") for _ in range(cache.layer)]
    for _ in tokens
]
tensors = [
    [(KVTensor(k.ctypes.data, k.nbytes), KVTensor(v.ctypes.data, v.nbytes)) for k, v in token]
    for token in found
]
matched = cache.query(None, tokens, tensors)
assert matched == 4
for i in range(matched):
    for j in range(cache.layer):
        for kind in range(2):
            assert np.array_equal(found[i][j][kind], given[i][j][kind])
