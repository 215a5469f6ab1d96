"""Trains the demo model: `python -m experiments.demo_model.train --out runs/demo`.

A curriculum of length and number of facts: a stage is left when 88% of the *first* tokens of the
answers are right (the later digits follow from the first, so their average deceives).
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from experiments.demo_model import words
from experiments.demo_model.data import CHAINS, FULL, PLAIN
from experiments.demo_model.encode import Encoder
from experiments.demo_model.model import DemoModel, ModelConfig
from experiments.demo_model.structured_start import RETRIEVAL_HEADS, structured_start
from experiments.demo_model.tokenizer import vocabulary

STAGES = (  # tokens, fewest and most facts, what the conversations hold
    (64, (1, 2), PLAIN),
    (128, (2, 5), PLAIN),
    (256, (3, 10), PLAIN),
    (128, (2, 5), FULL),
    (256, (3, 10), FULL),
    (512, (4, 20), FULL),
    (1024, (6, 40), FULL),
    (2048, (8, 72), FULL),
    (4096, (16, 128), FULL),
)
LAST_STAGE_MIX = ((4, 0.12), (5, 0.2), (6, 0.31), (7, 0.31), (8, 0.06))
# The second phase: shares of batches with questions of two hops, and with one plain phrasing.
CHAIN_STAGES = ((128, (3, 6)), (256, (4, 10)), (512, (8, 20)), (1024, (12, 36)))
CHAIN_SHARE, PLAIN_SHARE = 0.25, 0.25
ADVANCE_AT, FEWEST_STEPS = 0.88, 15
WARM_UP, DECAY_SHARE, LOWEST_RATE = 100, 0.3, 0.03


def write_weights(
    weights: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Aside, then renamed: a reader never sees half a file."""
    aside = path.with_suffix(".partial")
    whole = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(whole, aside, metadata)
    os.replace(aside, path)


class Curriculum:
    """Which stage the next batch comes from, and when to go on to a harder one."""

    def __init__(self, rng: random.Random, stage: int = 0) -> None:
        self.rng, self.stage = rng, stage
        self.accuracy, self.steps = 0.0, 0

    @property
    def last(self) -> bool:
        return self.stage == len(STAGES) - 2  # the longest comes in the last mix only

    def draw(self) -> int:
        if self.last:
            stages, chances = zip(*LAST_STAGE_MIX, strict=True)
            return self.rng.choices(stages, chances)[0]
        if self.stage == 0 or self.rng.random() < 0.75:
            return self.stage
        return self.rng.randrange(max(0, self.stage - 2), self.stage)

    def report(self, stage: int, accuracy: float) -> bool:
        """Takes in one batch's accuracy on first answer tokens; True if the stage went up."""
        if stage != self.stage:
            return False
        self.accuracy = accuracy if not self.steps else 0.9 * self.accuracy + 0.1 * accuracy
        self.steps += 1
        if self.accuracy < ADVANCE_AT or self.steps < FEWEST_STEPS or self.last:
            return False
        self.stage, self.steps = self.stage + 1, 0
        return True


def learning_rate(step: int, progress: float, peak: float) -> float:
    falling = max(LOWEST_RATE, (1 - progress) / DECAY_SHARE)
    return peak * min(1.0, (step + 1) / WARM_UP, falling)


def make_optimizer(model: DemoModel, rate: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.01},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def training_step(model: DemoModel, ids: Tensor, weights: Tensor) -> tuple[Tensor, float, float]:
    """Gradients of one batch; its loss, and how many ordinary and hard answers begin right."""
    targets, weights = ids[:, 1:], weights[:, 1:]
    rows, columns = (weights > 0).nonzero(as_tuple=True)
    wanted = rows * ids.shape[1] + columns
    target, weight = targets[rows, columns], weights[rows, columns]
    logits = model(ids, wanted)
    losses = F.cross_entropy(logits, target, reduction="none")
    loss = (losses * weight).sum() / weight.sum()
    model.zero_grad(set_to_none=True)
    loss.backward()
    hits = (logits.argmax(-1) == target).float()
    first, hard = weight >= 1, (weight > 0.98) & (weight < 1)
    return loss.detach(), hits[first].mean().item(), hits[hard].mean().item()


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed + 1)
    encoder = Encoder()
    tokens, _ = vocabulary()
    model = DemoModel(ModelConfig(vocab_size=len(tokens)))
    names = [encoder.ids(name)[0] for name in words.NAMES]
    structured_start(model, tokens, names, retrieval=args.retrieval)
    if args.resume:
        model.load_hugging_face_weights(load_file(args.resume))
    optimizer = make_optimizer(model, args.rate)
    curriculum = Curriculum(rng, len(STAGES) - 2 if args.two_hops else 0)
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    bar = tqdm(total=args.steps, mininterval=5)
    step = 0
    while True:
        minutes = (time.monotonic() - started) / 60
        progress = max(step / args.steps, minutes / args.minutes)
        if progress >= 1:
            break
        stage = curriculum.draw()
        length, facts, difficulty = STAGES[stage]
        kind = rng.random() if args.two_hops else 1.0
        if chained := kind < CHAIN_SHARE:
            (length, facts), difficulty = rng.choice(CHAIN_STAGES), CHAINS
        elif kind < CHAIN_SHARE + PLAIN_SHARE:
            difficulty = PLAIN
        ids, weights = encoder.batch(
            rng, max(1, args.batch_tokens // length), length, facts, difficulty
        )
        loss, first, hard = training_step(model, torch.from_numpy(ids), torch.from_numpy(weights))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, args.rate)
        optimizer.step()
        step += 1
        bar.update()
        if not chained and curriculum.report(stage, first):
            tqdm.write(f"step {step}, {minutes:.1f} min: stage {curriculum.stage}")
        if step % 20 == 0:
            bar.set_postfix(stage=curriculum.stage, first=f"{curriculum.accuracy:.3f}")
            line = {
                "step": step,
                "minutes": round(minutes, 2),
                "stage": curriculum.stage,
                "length": length,
                "loss": round(loss.item(), 4),
                "first": round(first, 3),
                "hard": round(hard, 3),
                "average": round(curriculum.accuracy, 3),
            }
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if step % 200 == 0:
            write_weights(model.hugging_face_weights(), args.out / "model.safetensors")
    write_weights(model.hugging_face_weights(), args.out / "model.safetensors")
    bar.close()
    print(f"{step} steps in {minutes:.1f} minutes, stage {curriculum.stage}")


def _heads(text: str) -> tuple[tuple[int, int], ...]:
    pairs = (pair.split(":") for pair in text.split(","))
    return tuple((int(layer), int(head)) for layer, head in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and log")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=600, help="ends earlier if time is up")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="weights to go on from")
    parser.add_argument("--two-hops", action="store_true", help="the second phase; see --resume")
    parser.add_argument(
        "--retrieval", type=_heads, default=RETRIEVAL_HEADS, help="layer:kv_head,... of the start"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
