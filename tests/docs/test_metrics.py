"""docs/METRICS.md is what contrib/metrics makes of the code."""

from __future__ import annotations

import json
import re
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


def test_the_dashboard_shows_only_metrics_that_there_are() -> None:
    board = json.loads((TOP / "contrib" / "grafana" / "s3mount.json").read_text())
    page = (TOP / "docs" / "METRICS.md").read_text()
    told = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    kinds = dict(re.findall(r"^\| `(\w+)[^|]*\| (\w+)", page, re.MULTILINE))
    ids, shown = [], set()
    for panel in board["panels"]:
        ids.append(panel["id"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            names = re.findall(r"\bs3mount_\w+", target["expr"])
            assert names, target
            assert target["expr"].count("$mountpoint") == len(names)
            rates = re.findall(r"rate\((s3mount_\w+)", target["expr"])
            assert all(kinds[name] == "counter" for name in rates), target
            shown.update(names)
    assert len(set(ids)) == len(ids) >= 10
    assert shown <= told
    (mounts,) = [each for each in board["templating"]["list"] if each["name"] == "mountpoint"]
    assert mounts["query"] == "label_values(s3mount_up, mountpoint)"
