"""One S3 server for all workers of a test run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import S3Server
from tests.servers import chosen as servers


def test_the_first_starts_it_and_the_last_lets_it_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[str] = []

    @contextlib.contextmanager
    def starting(name: str, folder: Path) -> Iterator[S3Server]:
        history.append("started")
        yield S3Server(name=name, endpoint_url=str(folder), access_key="a", secret_key="b")
        history.append("ended")

    monkeypatch.setattr(servers, "chosen", starting)
    leave = threading.Event()

    def use_first() -> None:
        with servers.shared("ceph", tmp_path):
            there.set()
            leave.wait(20)

    there = threading.Event()
    first = threading.Thread(target=use_first)
    first.start()
    assert there.wait(20)
    with servers.shared("ceph", tmp_path) as server:
        assert server.endpoint_url == str(tmp_path / "ceph")
        leave.set()
        first.join(0.2)
        assert first.is_alive()
        assert history == ["started"]
    first.join(20)
    assert history == ["started", "ended"]
    with servers.shared("ceph", tmp_path):
        assert history == ["started", "ended", "started"]
