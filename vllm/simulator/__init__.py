"""The real engine without a model: modelled time, modelled tiers, the same scheduler and cache."""
