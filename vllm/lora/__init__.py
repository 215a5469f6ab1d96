"""Old door; LoRA adapters are refused."""
