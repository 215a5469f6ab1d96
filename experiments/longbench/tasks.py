"""LongBench's datasets (Bai et al., 2023): how each is asked, and how its answers are scored.

The instructions are worded anew; `load_prompts` takes LongBench's own, `dataset2prompt.json`, for
figures that shall stand beside published ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSAGES = (
    "Use the passages to answer the question. Reply with the answer alone.\n\n{context}\n\n"
    "Question: {input}\nAnswer:"
)
CODE = "Write the line that comes next in this code.\n{context}{input}Next line:\n"
SUMMARY = "Summarize this {what} on one page.\n\n{{context}}\n\nSummary:"


@dataclass(frozen=True)
class Dataset:
    """max_tokens: of the answer. chat: whether the model's chat template is put around it.

    first_line: whether only the answer's first line counts. metric: a name of metrics.METRICS.
    """

    metric: str
    max_tokens: int
    prompt: str
    chat: bool = True
    first_line: bool = False


DATASETS = {
    "narrativeqa": Dataset(
        "qa_f1",
        128,
        "Here is a story, and a question about it. Answer in as few words as you can.\n\n"
        "{context}\n\nQuestion: {input}\nAnswer:",
    ),
    "qasper": Dataset(
        "qa_f1",
        128,
        "Here is a scientific article, and a question about it. Answer in a phrase or a sentence; "
        'yes, no and "unanswerable" are answers, too.\n\n{context}\n\nQuestion: {input}\nAnswer:',
    ),
    "multifieldqa_en": Dataset(
        "qa_f1", 64, "{context}\n\nAnswer in a few words from this text.\nQ: {input}\nA:"
    ),
    "hotpotqa": Dataset("qa_f1", 32, PASSAGES),
    "2wikimqa": Dataset("qa_f1", 32, PASSAGES),
    "musique": Dataset("qa_f1", 32, PASSAGES),
    "gov_report": Dataset("rouge", 512, SUMMARY.format(what="government report")),
    "qmsum": Dataset(
        "rouge",
        512,
        "Here is the transcript of a meeting, and a question about it. Answer in one or more "
        "sentences.\n\n{context}\n\nQuestion: {input}\nAnswer:",
    ),
    "multi_news": Dataset("rouge", 512, SUMMARY.format(what="news from several sources")),
    "trec": Dataset(
        "classification",
        64,
        "Name the type of the last question as in the examples.\n{context}\n{input}",
        chat=False,
        first_line=True,
    ),
    "triviaqa": Dataset(
        "qa_f1",
        32,
        "Answer from the passage, with the answer alone, as in the examples.\n\n"
        "{context}\n\n{input}",
        chat=False,
        first_line=True,
    ),
    "samsum": Dataset(
        "rouge",
        128,
        "Summarize the last dialogue as in the examples.\n\n{context}\n\n{input}",
        chat=False,
        first_line=True,
    ),
    "passage_count": Dataset(
        "count",
        32,
        "Some of these paragraphs stand here more than once. How many different ones are there?\n\n"
        "{context}\n\nReply with the number alone.\nNumber of different paragraphs:",
    ),
    "passage_retrieval_en": Dataset(
        "retrieval",
        32,
        "Here are 30 paragraphs of Wikipedia and the abstract of one of them. Which one?\n\n"
        '{context}\n\nAbstract: {input}\n\nReply like "Paragraph 1".\nAnswer:',
    ),
    "lcc": Dataset("code_similarity", 64, CODE, chat=False),
    "repobench-p": Dataset("code_similarity", 64, CODE, chat=False),
}
IN_E = (  # the datasets of LongBench-E, whose lengths are spread evenly
    "qasper multifieldqa_en hotpotqa 2wikimqa gov_report multi_news trec triviaqa samsum "
    "passage_count passage_retrieval_en lcc repobench-p"
).split()


def file_name(dataset: str, e: bool) -> str:
    return f"{dataset}_e.jsonl" if e else f"{dataset}.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows with context, input, answers and length. Raises ValueError naming file and line."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            missing = [k for k in ("context", "input", "answers", "length") if k not in row]
            if missing:
                raise ValueError(f"{path}:{number}: there is no {missing[0]}")
            rows.append(row)
    return rows


def load_prompts(path: Path) -> dict[str, str]:
    """Instructions by dataset, with {context} and {input}. Raises ValueError."""
    prompts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(prompts, dict) or not all(
        isinstance(p, str) and "{context}" in p for p in prompts.values()
    ):
        raise ValueError(f"{path}: it must map datasets to texts that hold {{context}}")
    return prompts


def filled(prompt: str, row: dict[str, Any]) -> str:
    """Both at once, so that neither text is taken for a place to fill."""
    head, _, tail = prompt.partition("{context}")
    return (
        head.replace("{input}", row["input"])
        + row["context"]
        + tail.replace("{input}", row["input"])
    )
