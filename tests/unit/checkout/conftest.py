"""A world of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.checkout.folders import World


@pytest.fixture(params=[False, True], ids=["always-read", "known-by-digest"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """Once with manifests that must be read each time, once with such as are known again."""
    made = World(tmp_path)
    made.is_known = request.param
    return made
