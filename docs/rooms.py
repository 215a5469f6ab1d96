"""Draws docs/rooms.svg: the rooms of vllm/, left to right in the order of who may import whom."""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).parent.parent / "vllm"

# A column imports only from columns left of it, a room never from its neighbours above and below.
COLUMNS: list[list[tuple[str, str]]] = [
    [("core", "requests, plans, errors")],
    [("config", "EngineArgs, flags")],
    [
        ("observe", "metrics, log line"),
        ("grammar", "structured outputs"),
        ("kernels", "ops: reference, C++"),
        ("kvstore", "the shared store"),
    ],
    [("kv", "pool, keys, tables")],
    [
        ("compression", "which KVs stay"),
        ("model_executor", "models, loader"),
        ("scheduler", "what runs next"),
    ],
    [
        ("worker", "forward, sample"),
        ("engine", "the loop, its process"),
    ],
    [("simulator", "engine, no model"), ("prefixlab", "traces, policies")],
    [("entrypoints", "LLM, serve, HTTP")],
]
WIDTH, HEIGHT, GAP, TOP = 132, 62, 22, 44


def draw() -> str:
    """The picture as SVG text. Raises ValueError when a room exists that the picture lacks."""
    drawn = {name for column in COLUMNS for name, _ in column}
    there = {p.name for p in SOURCE.iterdir() if (p / "__init__.py").is_file()}
    missing = (
        there - drawn - {"utils", "v1", "tokenizers", "lora", "renderers"}
    )  # old doors: thin re-exports
    if missing or drawn - there:
        raise ValueError(f"docs/rooms.py and vllm/ differ: {sorted(missing | (drawn - there))}")
    tallest = max(map(len, COLUMNS))
    inner = tallest * (HEIGHT + GAP) - GAP
    width = len(COLUMNS) * (WIDTH + GAP) + GAP
    height = TOP + inner + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fbfaf7"/>',
        f'<text x="{GAP}" y="26" fill="#555">imported by what is right of it</text>',
        f'<path d="M{GAP + 210} 22 H{width - GAP - 8} m-7 -4 l7 4 l-7 4" fill="none" '
        'stroke="#999"/>',
    ]
    for i, column in enumerate(COLUMNS):
        x = GAP + i * (WIDTH + GAP)
        used = len(column) * (HEIGHT + GAP) - GAP
        for j, (name, what) in enumerate(column):
            y = TOP + (inner - used) / 2 + j * (HEIGHT + GAP)
            parts += [
                f'<rect x="{x}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
                'fill="#e6eef5" stroke="#7d9bb5"/>',
                f'<text x="{x + WIDTH / 2:g}" y="{y + 27:g}" text-anchor="middle" '
                f'font-weight="600" fill="#1f3a52">{name}</text>',
                f'<text x="{x + WIDTH / 2:g}" y="{y + 46:g}" text-anchor="middle" '
                f'font-size="11" fill="#456">{what}</text>',
            ]
    parts.append(
        f'<text x="{GAP}" y="{height - 14}" font-size="11" fill="#777">csrc/ holds the C++ that '
        "kernels loads; tests/ mirrors vllm/; rooms in one column never import each other</text>"
    )
    return "\n".join([*parts, "</svg>", ""])
