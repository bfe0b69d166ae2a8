"""Directory buckets, as a stand-in answers for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.subjects import set_credentials
from tests.fuse.mounts import QuickMount
from tests.servers.express import BUCKET, ExpressServer

MakeMount = Callable[..., QuickMount]


@pytest.fixture
def express(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExpressServer]:
    """A directory bucket."""
    with ExpressServer() as server:
        set_credentials(monkeypatch, server.as_server())
        yield server


@pytest.fixture
def mounted(express: ExpressServer, tmp_path: Path) -> Iterator[MakeMount]:
    """``mounted(option, ...)``: the bucket, mounted, once its habits are known."""
    made: list[QuickMount] = []

    def make(*options: str) -> QuickMount:
        folder = tmp_path / f"m{len(made)}"
        folder.mkdir()
        mount = QuickMount(express.as_server(), BUCKET, folder, ["--upload-delay", "0", *options])
        made.append(mount)
        mount.mount()
        return mount

    try:
        yield make
    finally:
        for mount in made:
            mount.close()
