"""Which KVs of a sequence to keep: metrics score them, `choose` chooses."""
