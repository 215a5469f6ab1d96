"""Old door: programs import the name, whether or not they have an adapter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LoRARequest:
    """An adapter to answer with. `LLM` refuses it: LoRA is not implemented."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""


__all__ = ["LoRARequest"]
