"""The words that the glossary bans do not occur in the code, the templates and the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GLOSSARY = REPOSITORY / "docs" / "reference" / "glossary.md"


def banned() -> list[str]:
    """Return the words and phrases in the rows of the glossary that are marked "banned"."""
    rows = re.findall(r"^\| (.+?) \|.*\| banned \|$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def pattern(words: list[str]) -> re.Pattern[str]:
    """Return a pattern of whole words: ``…`` is any text on the same line, case counts in words with capitals only."""
    phrases = []
    for word in words:
        phrase = r"[^\n]*?".join(re.escape(part) for part in word.split("…"))
        phrases.append(rf"(?<!\w){phrase}(?!\w)" if word != word.lower() else rf"(?i:(?<!\w){phrase}(?!\w))")
    return re.compile("|".join(phrases))


def texts() -> list[Path]:
    """Return the files whose language is checked."""
    endings = {"src": {".py", ".pyi", ".html", ".js", ".css", ".yaml", ".j2"}, "docs": {".md", ".py"}}
    found = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    for folder, suffixes in endings.items():
        found += [path for path in sorted((REPOSITORY / folder).rglob("*")) if path.suffix in suffixes]
    return [path for path in found if path != GLOSSARY and "_build" not in path.parts]


def test_banned_words_do_not_occur() -> None:
    words = pattern(banned())
    hits = [
        f"{path.relative_to(REPOSITORY)}:{number}: {match[0]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in words.finditer(line)
    ]
    assert hits == []


@pytest.mark.parametrize(
    ("line", "hit"),
    [
        ("He was told so.", "told"),
        ("Mind: the field is blank", "Mind:"),
        ("the map lies on the cell", "lies"),
        ("this is no plugin of ours", "is no plugin of ours"),
        ("Sizes are held against the rules", "held against"),
        ("the layer, the layout and an untold number come to mind: none", None),
    ],
)
def test_whole_words_are_matched(line: str, hit: str | None) -> None:
    match = pattern(banned()).search(line)
    assert (match[0] if match else None) == hit


def test_the_glossary_marks_words() -> None:
    assert {"stranger", "Mind:", "told", "amid", "anew", "held against", "lies", "twins"} <= set(banned())
