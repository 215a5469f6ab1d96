# The original's first example with its calls and arguments; only the package's name is another.
import numpy as np

from vllm.kvstore import KVCache, KVTensor
from vllm.kvstore.config import VineyardCacheConfig

config = VineyardCacheConfig(
    socket="/tmp/vineyard_test.sock",
    block_size=5,
    sync_interval=3,
    llm_cache_sync_lock="llmCacheSyncLock",
    llm_cache_object_name="llm_cache_object",
    llm_ref_cnt_object_name="llm_refcnt_object",
)
cache = KVCache(cache_config=config, tensor_bytes=16, cache_capacity=1024, layer=2)

tokens = [1, 2, 3, 4]
given = [
    [tuple(np.random.rand(2, 2).astype(np.float32) for _ in "kv") for _ in range(cache.layer)]
    for _ in tokens
]
kv_state_list = [
    [(KVTensor(k.ctypes.data, k.nbytes), KVTensor(v.ctypes.data, v.nbytes)) for k, v in token]
    for token in given
]
updated = cache.update(None, tokens, kv_state_list)
assert updated == 4

kv_state_list = [[(KVTensor(0, 0), KVTensor(0, 0)) for _ in range(cache.layer)] for _ in tokens]
matched = cache.query(tokens, kv_state_list)
assert matched == 4
for i in range(matched):
    for j in range(cache.layer):
        for kind in range(2):
            found = np.frombuffer(kv_state_list[i][j][kind], dtype=np.float32).reshape(2, 2)
            assert np.array_equal(found, given[i][j][kind])
