"""How much a compression leaves, and how much memory a sequence takes on its way: numbers alone."""

from __future__ import annotations

from bisect import bisect_right

from vllm.config.compression import CompressionSettings
from vllm.core.compression import CompressionParams
from vllm.kv.spec import KVSpec


class Sizes:
    """KVs are counted over all layers and heads.

    chunk: tokens of a prompt that one step computes at most; None: prompts are not cut.
    """

    def __init__(
        self, settings: CompressionSettings, spec: KVSpec, num_blocks: int, chunk: int | None
    ) -> None:
        self._settings, self._spec = settings, spec
        self._num_blocks, self._chunk = num_blocks, chunk
        self._heads = spec.heads

    def budget(self, params: CompressionParams, tokens: int) -> int:
        return params.budget(tokens, self._heads, self._spec.block_size)

    def goal(self, params: CompressionParams, tokens: int) -> int:
        """About how many KVs are left after a compression: fewer are not worth one."""
        size = self._spec.block_size
        budget = -(-self.budget(params, tokens) // size) * size
        return max(budget, self._certain(params, tokens))

    def bound(self, params: CompressionParams, tokens: int, budget: int | None = None) -> int:
        """KVs that `choose` may keep at most: rows of a budget rule may each keep too much."""
        if budget is None:
            budget = self.budget(params, tokens)
        certain = self._certain(params, tokens)
        most = max(budget, certain) if params.budget_rule == "global" else budget + certain
        return min(most, tokens * self._heads)

    def _certain(self, params: CompressionParams, tokens: int) -> int:
        """KVs that stay whatever the budget: protected ones with their blocks, control layers."""
        size, layers = self._spec.block_size, len(self._settings.control_layers)
        protected = min(tokens, -(-params.protected_tokens(tokens) // size) * size)
        control = layers * self._spec.num_kv_heads
        return tokens * control + protected * (self._heads - control)

    # ---- prompts that are compressed as they come ---------------------------------------------

    def too_long(self, prompt: int) -> bool:
        """Whether the prompt is longer than the memory."""
        return self._whole(prompt) > self._num_blocks

    def stages(self, params: CompressionParams, prompt: int) -> list[int] | None:
        """After how many tokens to compress a prompt that is longer than the memory; none for one
        that is not. None: there is no room for it in this way either.

        Between two of them are at most a step's tokens, so that this is what it takes at its peak:
        all that stays of it, the next stage, and room for what will stay of both.
        """
        if not self.too_long(prompt):
            return []
        kept = self._spec.blocks_at_most(self.bound(params, prompt))
        room = (self._num_blocks - 2 * kept - 1) * self._spec.block_size
        if room <= 0 or self._chunk is None:
            return None
        count = -(-prompt // min(room, self._chunk))
        ends = [prompt * i // count for i in range(1, count)]
        return [e for e in ends if e * self._heads > self.goal(params, e)]

    def longest(self, params: CompressionParams, prompt: int, most: int) -> int:
        """To how many tokens, at most `most`, a sequence can grow that is alone.

        As many as the memory holds, of one that has no room beside its compressed form.
        """
        size = self._spec.block_size
        whole = min(most, self._num_blocks * size)
        if prompt <= whole:
            kept = self._spec.blocks_at_most(self.bound(params, prompt))
            if self._whole(prompt) + kept > self._num_blocks:
                return whole
        grown = self._whole(max(size, self._settings.interval) + size)

        def peak(tokens: int) -> int:
            again = self._spec.blocks_at_most(self.bound(params, tokens))
            if not params.compress_once:
                return 2 * again + grown + 1
            kept = self.bound(params, prompt) + (tokens - prompt) * self._heads
            return self._spec.blocks_at_most(kept) + 1

        further = range(prompt, most + 1)
        return max(whole, prompt + bisect_right(further, self._num_blocks, key=peak) - 1)

    def _whole(self, tokens: int) -> int:
        return -(-tokens // self._spec.block_size)
