"""The KV cache. `manager.KVManager` is its only door; the scheduler sees nothing else of it."""
