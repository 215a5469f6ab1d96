"""The generated documentation is what the code says, and links lead somewhere."""

import re
from pathlib import Path

import pytest

from docs.generate import generated, stale

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")])


def test_generated_pages_are_current() -> None:
    assert stale() == [], "run make docs"


def test_a_stale_page_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(iter(generated()))
    monkeypatch.setattr("docs.generate.generated", lambda: {first: "something else"})
    assert stale() == [first]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page}: {target}"
