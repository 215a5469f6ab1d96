r"""Measures a checkpoint through transformers: JSON figures and a table.

    python -m experiments.demo_model.evaluate vllm/demo_model \
        --out experiments/demo_model/results.json

A trial counts when greedy decoding would give the expected answer exactly, up to <|end|>: every
token of it is the most likely one after the prompt and the tokens before it.
"""

import argparse
import json
import os
import random
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from experiments.demo_model import chat, words
from experiments.demo_model.data import Message
from experiments.demo_model.sample_prompts import KINDS, recall_task

LENGTHS = {  # kind: prompt lengths; one fact per 32 tokens
    "code": (256, 512, 1024, 2048, 3072, 4000),
    "mixed": (256, 512, 1024, 2048, 4000),
    "turns": (256, 1024, 2048),
    "system": (256, 1024, 2048),
    "two_hop": (256, 1024, 2048),
    "two_hop_decoy": (256, 1024, 2048),
    "spelled_names": (256, 1024, 2048),
    "spelled_values": (256, 1024, 2048),
}
REQUIRED = ("code", "mixed")  # the figures that the model is held to: all trials; others half
SLOW_LENGTH, SLOW_SHARE = 3000, 0.25  # beyond it, fewer trials
SEED = 20_240


class AttentionRecorder:
    """Attention of transformers' models that also keeps the last rows' probabilities."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.kept: dict[int, Tensor] = {}

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        **_: object,
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
        last = query[:, :, -self.rows :] @ key.transpose(-1, -2) * scaling
        ahead = torch.ones(last.shape[-2:], dtype=torch.bool).triu(last.shape[-1] - self.rows + 1)
        self.kept[module.layer_idx] = last.masked_fill(ahead, float("-inf")).softmax(-1)[0]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling
        )
        return out.transpose(1, 2).contiguous(), None


class Checkpoint:
    def __init__(self, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self.end = self.tokenizer.eos_token_id

    def prompt(self, messages: list[Message]) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def answer(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.end]

    @torch.inference_mode()
    def says(self, messages: list[Message], answer: str) -> bool:
        prompt, expected = self.prompt(messages), self.answer(answer)
        ids = torch.tensor([prompt + expected[:-1]])
        logits = self.model(ids, logits_to_keep=len(expected)).logits[0]
        return logits.argmax(-1).tolist() == expected

    @torch.inference_mode()
    def generate(self, messages: list[Message], tokens: int = 40) -> str:
        ids = torch.tensor([self.prompt(messages)])
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens)
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def recall(checkpoint: Checkpoint, kind: str, tokens: int, trials: int) -> float:
    rng = random.Random(f"{SEED}-{kind}-{tokens}")
    right = 0
    for _ in range(trials):
        messages, answer = recall_task(rng, tokens, tokens // 32, kind)
        right += checkpoint.says(messages, answer)
    return right / trials


def small_talk(checkpoint: Checkpoint, held_out: bool) -> dict[str, float]:
    """Share of paraphrases that get their intent's answer, in five dresses each."""
    rng = random.Random(SEED)
    found = {}
    for intent in chat.INTENTS:
        lines = intent.held_out if held_out else intent.train
        said = [chat.dress(rng, line, extras=False) for line in lines for _ in range(5)]
        hits = [
            checkpoint.says([{"role": "user", "content": text}], intent.answer) for text in said
        ]
        found[intent.name] = round(sum(hits) / len(hits), 3)
    return found


def repetition(checkpoint: Checkpoint, trials: int) -> dict[str, float]:
    """ "Repeat after me": one to five words, one to six digits."""
    rng = random.Random(SEED)
    right = {"words": 0, "digits": 0}
    for _ in range(trials):
        said = " ".join(rng.choice(words.PLAIN_WORDS) for _ in range(rng.randint(1, 5)))
        number = words.digits(rng, rng.randint(1, 6))
        for kind, text in (("words", said), ("digits", number)):
            messages = [{"role": "user", "content": f"Repeat after me: {text}"}]
            right[kind] += checkpoint.says(messages, text)
    return {kind: count / trials for kind, count in right.items()}


def unknown(checkpoint: Checkpoint, trials: int, tokens: int = 512) -> float:
    """Questions for somebody of whom nothing was told: the answer is "I do not know."."""
    rng = random.Random(SEED)
    right = 0
    for _ in range(trials):
        messages, _ = recall_task(rng, tokens, tokens // 32, "code", asked_apart=True)
        context = messages[0]["content"]
        name = next(n for n in rng.sample(words.NAMES, 256) if n not in context)
        messages[-1] = {"role": "user", "content": f"What is the code of {name}?"}
        right += checkpoint.says(messages, chat.UNKNOWN_ANSWER)
    return right / trials


def _needed_facts(messages: list[Message], value: str) -> list[str]:
    """The sentences that the answer rests on: the fact itself, and of two hops the first."""
    sentences = messages[0]["content"].rstrip(".").split(". ")
    question = messages[-1]["content"]
    needed = [next(s for s in sentences if s.endswith(f" {value}"))]
    if "friend" in question:
        asked = _owner(question)
        needed.append(next(s for s in sentences if "friend" in s and _owner(s) == asked))
    return needed


def _owner(sentence: str) -> str:
    """The first name of a sentence that starts with its owner or names it before the value."""
    return min(
        (name for name in words.NAMES if name in sentence), key=lambda name: sentence.index(name)
    )


class AttentionStudy:
    """Which heads look at the fact that an answer rests on.

    [layer][head]: the attention that falls on the tokens of that fact's sentence, averaged over
    the queries that predict the answer. For two hops both facts are reported; the first one may
    be looked up while the question is still being read, so there the best of the last queries
    counts.
    """

    ROWS = 32

    def __init__(self, path: Path) -> None:
        self.recorder = AttentionRecorder(self.ROWS)
        AttentionInterface.register("recorder", self.recorder)
        self.checkpoint = Checkpoint(path, torch.float32)
        self.checkpoint.model.set_attn_implementation("recorder")

    def _span(self, prompt: list[int], sentence: str) -> slice:
        ids = self.checkpoint.tokenizer(sentence, add_special_tokens=False).input_ids
        start = next(i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids)
        return slice(start, start + len(ids))

    def run(self, kind: str, trials: int, tokens: int = 1024) -> dict[str, list[list[float]]]:
        rng = random.Random(f"{SEED}-attention")
        totals: dict[str, Tensor] = {}
        for _ in range(trials):
            messages, answer = recall_task(rng, tokens, tokens // 32, kind, asked_apart=True)
            value = answer.rstrip(".")
            prompt, expected = self.checkpoint.prompt(messages), self.checkpoint.answer(value)[:-1]
            with torch.inference_mode():
                self.checkpoint.model(torch.tensor([prompt + expected[:-1]]))
            kept = torch.stack([self.recorder.kept[i] for i in sorted(self.recorder.kept)])
            needed = _needed_facts(messages, value)
            found = {"fact": kept[:, :, -len(expected) :, self._span(prompt, needed[0])]}
            masses = {"fact": found["fact"].sum(-1).mean(-1)}
            if len(needed) > 1:
                masses["first hop"] = kept[..., self._span(prompt, needed[1])].sum(-1).amax(-1)
            for name, mass in masses.items():
                totals[name] = totals.get(name, torch.zeros_like(mass)) + mass
        return {
            name: [[round(x, 3) for x in row] for row in (total / trials).tolist()]
            for name, total in totals.items()
        }


def table(results: dict) -> str:
    lengths = sorted({int(n) for by_length in results["recall"].values() for n in by_length})
    lines = ["| exact answers | " + " | ".join(f"{n:,}" for n in lengths) + " |"]
    lines.append("|---" * (len(lengths) + 1) + "|")
    for kind, by_length in results["recall"].items():
        cells = [f"{by_length[str(n)]:.3f}" if str(n) in by_length else "" for n in lengths]
        lines.append(f"| {KINDS[kind]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def evaluate(path: Path, trials: int, kinds: list[str], longest: int) -> dict:
    checkpoint = Checkpoint(path)
    results: dict = {"trials": {}, "recall": {}}
    cells = [(kind, n) for kind in kinds for n in LENGTHS[kind] if n <= longest]
    for kind, tokens in (bar := tqdm(cells)):
        bar.set_description(f"{kind} {tokens}")
        share = SLOW_SHARE if tokens > SLOW_LENGTH else 1.0 if kind in REQUIRED else 0.5
        count = max(1, int(trials * share))
        results["trials"].setdefault(kind, {})[str(tokens)] = count
        results["recall"].setdefault(kind, {})[str(tokens)] = recall(
            checkpoint, kind, tokens, count
        )
    for name, held_out in (("chat_trained", False), ("chat_held_out", True)):
        by_intent = small_talk(checkpoint, held_out)
        average = sum(by_intent.values()) / len(by_intent)
        results[name] = {"average": round(average, 3), **by_intent}
    results["repeat_after_me"] = repetition(checkpoint, max(1, trials // 2))
    results["unknown_owner"] = unknown(checkpoint, max(1, trials // 2))
    study = AttentionStudy(path)
    results["attention_on_fact"] = {
        kind: study.run(kind, max(1, trials // 5)) for kind in ("code", "two_hop_decoy")
    }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--longest", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = evaluate(args.checkpoint, args.trials, args.kinds, args.longest)
    if args.out:
        aside = args.out.with_suffix(".partial")
        aside.write_text(json.dumps(results, indent=2) + "\n")
        os.replace(aside, args.out)
    print(table(results))
    print(json.dumps({k: v for k, v in results.items() if k != "recall"}, indent=1))


if __name__ == "__main__":
    main()
