"""The examples of docs/API.md do what they show."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
import trio

import s3mount
from tests.servers import S3Server

TEXT = (Path(__file__).parents[2] / "docs" / "API.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_run_in_their_order(
    s3_server: S3Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable, value in s3_server.environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    Path("report.csv").write_bytes(b"1,2")
    Path("photos").mkdir()
    Path("photos/a.jpg").write_bytes(b"JPEG")
    fsspec.register_implementation(
        "s3mount", "s3mount.api.filesystem.S3MountFileSystem", clobber=True
    )
    settings = {"endpoint_url": s3_server.endpoint_url, "path_style": True}
    names: dict[str, Any] = {"s3mount": s3mount, "settings": settings, "fsspec": fsspec}
    for example in EXAMPLES:
        code = compile(
            example.replace("my-bucket", bucket),
            "docs/API.md",
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )

        async def run(code: Any = code) -> None:
            made = eval(code, names)
            if made is not None:
                await made

        if "async " in example:
            trio.run(run)
        else:
            exec(code, names)
    told = capsys.readouterr().out
    assert "b'1,2'" in told
    assert "data/photos/a.jpg 4" in told
    assert "sent" in told
    assert "table.csv" in told
    assert len(EXAMPLES) == 10


@pytest.mark.parametrize("name", [*s3mount.NAMES])
def test_the_names_of_the_package_are_there_and_in_the_page(name: str) -> None:
    assert getattr(s3mount, name) is not None
    assert name in dir(s3mount)
    if name not in ("Bucket", "BlockingBucket", "S3MountError", "TimeoutSettings"):
        assert f"{name}" in TEXT
