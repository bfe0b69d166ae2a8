"""Commands that need an order, on a directory bucket, which lists in none."""

from __future__ import annotations

from pathlib import Path

from tests.bulk.places import Places
from tests.servers.express import BUCKET, ExpressServer

NAMES = ["z", "a/x", "a-b", "m/n/o", "b"]


def test_sync_and_verify(express: ExpressServer, tmp_path: Path) -> None:
    places = Places(express.as_server(), BUCKET, tmp_path)
    folder = tmp_path / "d"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)

    def synced(*words: str) -> tuple[int, int, int]:
        told = places.told("sync", *words)[-1]
        return told["objects"], told["skipped"], told["failed"]

    assert synced("d", "{b}/t/") == (5, 0, 0)
    assert synced("d", "{b}/t/") == (5, 5, 0)
    places.run("verify", "d", "{b}/t")
    (folder / "a-b").unlink()
    (folder / "b").write_text("B")
    told = places.run("verify", "d", "{b}/t", status=1).stderr.decode()
    assert "/t/a-b" in told
    assert "/t/b" in told
    assert synced("d", "{b}/t/", "--delete")[2] == 0
    assert synced("{b}/t/", "back") == (4, 0, 0)
    assert (tmp_path / "back/b").read_text() == "B"
    assert not (tmp_path / "back/a-b").exists()
