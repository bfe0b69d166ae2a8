"""docs/ARCHITECTURE.md: the picture is the import contract's, and every file and name in it exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`(s3mount/[\w/]+\.py|contrib/\w+)`", PAGE)))
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (TOP / "s3mount").rglob("*.py"))


def test_the_picture_is_that_of_the_import_contract() -> None:
    drawn = subprocess.run(
        [sys.executable, str(TOP / "contrib" / "architecture")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert drawn in PAGE, "run contrib/architecture --write"
    assert "[ vfs ]" in drawn
    assert "[ upload ]" in drawn.partition("inside spool/")[2]


def test_every_file_that_is_named_exists() -> None:
    assert len(FILES) > 40
    assert [name for name in FILES if not (TOP / name).is_file()] == []


def test_every_name_of_the_code_is_defined() -> None:
    named = set(re.findall(r"`([A-Z][A-Za-z]+)(?:\.(\w+))?`", PAGE))
    assert len(named) > 20
    missing = [
        owner for owner, _ in named if not re.search(rf"^class {owner}\b", SOURCES, re.MULTILINE)
    ]
    missing += [
        method
        for _, method in named
        if method and not re.search(rf"^    (async )?def {method}\b", SOURCES, re.MULTILINE)
    ]
    assert missing == []


def test_the_readme_leads_here() -> None:
    assert "docs/ARCHITECTURE.md" in (TOP / "README.md").read_text(encoding="utf-8")
