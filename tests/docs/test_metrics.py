"""docs/METRICS.md is what contrib/metrics makes of the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]


def test_the_page_is_that_of_the_code() -> None:
    made = subprocess.run(
        [sys.executable, str(TOP / "contrib" / "metrics")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert made == (TOP / "docs" / "METRICS.md").read_text(), "run contrib/metrics --write"
    assert "s3mount_s3_requests_total" in made
