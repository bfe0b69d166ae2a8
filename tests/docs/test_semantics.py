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
