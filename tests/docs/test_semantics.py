"""docs/SEMANTICS.md names the tests that hold its promises: they must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/.]+)(?:::(\w+))?`")


def test_every_test_that_a_promise_names_exists() -> None:
    named = NAMED.findall((ROOT / "docs/SEMANTICS.md").read_text())
    assert len(named) > 15
    missing = []
    for path, function in named:
        where = ROOT / path
        if not where.exists():
            missing.append(path)
        elif function:
            tree = ast.parse(where.read_text())
            functions = ast.FunctionDef | ast.AsyncFunctionDef
            names = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
            if function not in names:
                missing.append(f"{path}::{function}")
    assert not missing


def test_every_promise_is_two_sentences_then_details_then_tests() -> None:
    page = (ROOT / "docs/SEMANTICS.md").read_text()
    promises = re.split(r"^### \d\. ", page.partition("\n## How files")[0], flags=re.MULTILINE)[1:]
    assert len(promises) == 7
    for promise in promises:
        title, said, details, *rest = promise.strip().split("\n\n")
        assert len(re.findall(r"\.(?= |\n|$)", said)) == 2, title
        assert details.startswith("- "), title
        assert [block.partition(" ")[0] for block in rest] == ["Tests:"], title
