"""The prefix laboratory: traces of block ids, replayed through cache policies.

Free of torch and of the engine; only the policies and the keys are the engine's own. The loops run
compiled (numba: `pip install vllm[lab]`).
"""
