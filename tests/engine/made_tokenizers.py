"""Tokenizer folders of several kinds, trained on a few lines when a test wants one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "Hello world, this is some text for a tokenizer. Hello again, hello!",
    "Grüße aus Köln: Äpfel, Öl und Übermut; ça va très bien, señor Núñez.",
    "Привет, мир. Это небольшой текст на русском языке.",
    "你好，世界。这是一个小小的例子，用来训练分词器。",
    "こんにちは世界。テキストです。 안녕하세요 세계. नमस्ते दुनिया।",
    "Smile 😀 and 😀😃 family 👨‍👩‍👧‍👦 flag 🇩🇪 done.",
    "def f(x):\n    return {'a': [1, 2.5, None]}  # tabs\tand  spaces\n",
]
BOS, EOS, TURN = "<s>", "</s>", "<|turn|>"
SPECIAL = [BOS, EOS, TURN]


def byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3: merges of bytes, which split characters anywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    _add_bos(tokenizer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama 2 and Mistral: spaces as ▁, unknown characters as byte tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, limit_alphabet=60, special_tokens=["<unk>", *SPECIAL], show_progress=False
    )
    trained.train_from_iterator(TEXTS[:2], trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = [tuple(m) for m in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ["<unk>", *SPECIAL]])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add_bos(tokenizer)
    return tokenizer


def word_level() -> Tokenizer:
    """Whole words with their leading space; no characters are split."""
    pieces = [" the", "the", " cat", "cat", " sat", ".", ",", "\n", " ", "1", "2", " ünïcode", "😀"]
    vocab = {token: i for i, token in enumerate(["<unk>", *SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ["<unk>", *SPECIAL]])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r" ?[\p{L}-]+|[0-9]|[.,]|\n|😀| "), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


KINDS = {"byte_level": byte_level, "metaspace": metaspace, "word_level": word_level}


def _add_bos(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )


def folder(path: Path, kind: str, **config: Any) -> Path:
    """Write the files of a model folder that concern its tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    KINDS[kind]().save(str(path / "tokenizer.json"))
    given = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (path / "tokenizer_config.json").write_text(json.dumps(given | config), encoding="utf-8")
    return path
