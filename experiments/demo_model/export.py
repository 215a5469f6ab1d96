"""Writes a trained model as a Hugging Face checkpoint, and checks that it is the same model.

python -m experiments.demo_model.export runs/demo/model.safetensors vllm/demo_model
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from experiments.demo_model import tokenizer as tk
from experiments.demo_model.data import FULL
from experiments.demo_model.encode import Encoder
from experiments.demo_model.model import DemoModel, ModelConfig
from experiments.demo_model.train import write_weights

MAX_POSITIONS = 4096
LOSSLESS = (
    "The code of amber-fox is 4821.",
    "  two spaces, a tab\tand\r\nlines \n",
    "zorblax, Übergröße, naïve, 日本語, Привет, 😀👩‍👩‍👧, a\u0301",
    "WHAT'S UP? don't <|almost",
    "",
)


def llama_config(config: ModelConfig) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rope_theta=config.rope_theta,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=tk.BOS_ID,
        eos_token_id=tk.END_ID,
        pad_token_id=tk.PAD_ID,
        dtype="bfloat16",
    )


def export(weights_path: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    encoder = Encoder()
    config = ModelConfig(vocab_size=encoder.tokenizer.get_vocab_size())
    trained = DemoModel(config)
    trained.load_hugging_face_weights(load_file(weights_path))
    weights = {
        name: weight.to(torch.bfloat16) for name, weight in trained.hugging_face_weights().items()
    }
    write_weights(weights, out / "model.safetensors", {"format": "pt"})
    llama_config(config).save_pretrained(out)
    GenerationConfig(
        bos_token_id=tk.BOS_ID,
        eos_token_id=tk.END_ID,
        pad_token_id=tk.PAD_ID,
        do_sample=False,
    ).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=encoder.tokenizer,
        bos_token=tk.BOS,
        eos_token=tk.END,
        pad_token=tk.PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        chat_template=tk.CHAT_TEMPLATE,
    ).save_pretrained(out)
    # The class name that every version of transformers knows.
    settings_path = out / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings_path.write_text(json.dumps(settings, indent=2) + "\n")
    card = Path(__file__).with_name("MODEL_CARD.md")
    if card.exists():
        shutil.copyfile(card, out / "README.md")
    for path in out.iterdir():
        path.chmod(0o644)


@torch.no_grad()
def check(weights_path: Path, out: Path) -> None:
    """Same tokens and same logits through transformers as in training; any text without loss."""
    encoder = Encoder()
    loaded = AutoTokenizer.from_pretrained(out)
    for text in LOSSLESS:
        ids = loaded(text, add_special_tokens=False).input_ids
        if loaded.decode(ids) != text:
            raise AssertionError(f"{text!r} came back as {loaded.decode(ids)!r}")
        if tuple(ids) != encoder.ids(text):
            raise AssertionError(f"{text!r} encodes differently through transformers")
    rng = random.Random(5)
    ids, _ = encoder.conversation(rng, 512, 8, FULL)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    trained = DemoModel(model_config := ModelConfig(vocab_size=model.config.vocab_size))
    trained.load_hugging_face_weights(
        {k: w.to(torch.bfloat16).float() for k, w in load_file(weights_path).items()}
    )
    batch = torch.tensor([ids])
    ours = trained(batch, torch.arange(len(ids)), torch.float32)
    worst = (ours - model(batch).logits[0]).abs().max().item()
    if worst > 1e-2:
        raise AssertionError(f"logits differ by {worst}")
    size = (out / "model.safetensors").stat().st_size
    count = sum(weight.numel() for weight in trained.parameters())
    print(
        f"{count} parameters, {size} bytes, {model_config.layers} layers; logits within {worst:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    export(args.weights, args.out)
    check(args.weights, args.out)


if __name__ == "__main__":
    main()
