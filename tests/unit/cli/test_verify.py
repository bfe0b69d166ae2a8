"""What ``s3mount manifest verify --content`` says, on a bucket in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio

from s3mount.cli.commands import main
from s3mount.errors import NetworkError
from s3mount.refs import ObjectHeaders, ObjectInfo
from s3mount.testing.memory_store import MemoryStore
from tests import manifest_access


class Store(MemoryStore):
    """Of the key ``broken`` nothing comes."""

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        if key == "broken":
            raise NetworkError("the answer broke off")
        return await super().head(key, version_id=version_id)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store("b", versioning="enabled", part_bytes_min=1)
    made.tells_part_lengths = False
    manifest_access.use(made, monkeypatch)
    return made


def put(store: Store, key: str, *bodies: bytes) -> None:
    async def write() -> None:
        if len(bodies) == 1:
            await store.put(key, bodies[0], ObjectHeaders())
            return
        upload = await store.create_multipart(key, ObjectHeaders())
        parts = [
            await store.upload_part(key, upload, number, body)
            for number, body in enumerate(bodies, 1)
        ]
        await store.complete_multipart(key, upload, parts)

    trio.run(write)


def test_what_is_wrong_unread_and_not_proven_is_told_apart(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = str(tmp_path / "m.csv")
    put(store, "right", b"1")
    put(store, "in parts", b"123", b"12345", b"1")
    assert main(["manifest", "create", "b", "-o", made]) == 0
    capsys.readouterr()
    assert main(["manifest", "verify", "--content", made]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "2 versions checked, 0 wrong, 1 not proven (their store tells no digest; --json names them), 10 B read\n"
    )
    assert main(["manifest", "verify", "--content", "--json", made]) == 0
    line, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["key"], "unproven" in line, "problem" in line) == ("in parts", True, False)
    assert (summary["problems"], summary["unproven"]) == (0, 1)

    put(store, "broken", b"1")
    assert main(["manifest", "create", "b", "-o", made]) == 0
    capsys.readouterr()
    assert main(["manifest", "verify", "--content", made]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("s3://b/broken ")
    assert told.out.endswith(" cannot be read: the answer broke off\n")
    assert "3 versions checked, 0 wrong, 1 could not be read, 1 not proven" in told.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--workers", "local:0"], "local:N"),
        (["--workers", "local:256"], "local:N"),
        (["--workers", "elsewhere:2"], "local:N"),
        (["--workers", "dask://host"], "local:N"),
        (["--workers", "local:2", "--batch", "some"], "is no size"),
        (["--batch", "10"], "are for --workers"),
        (["--resume", "log"], "are for --workers"),
        (["--workers", "local:2", "--perf-log", "perf.json"], "leave out --workers"),
    ],
)
def test_workers_that_cannot_be_had_are_refused(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "m.csv"
    made.write_text("bucket,key,version_id\nb,k,null\n")
    assert main(["manifest", "verify", *given, str(made)]) == 2
    assert said in capsys.readouterr().err


def test_a_cluster_without_dask_names_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "m.csv"
    made.write_text("bucket,key,version_id\nb,k,null\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["manifest", "verify", "--workers", "dask://host:1", str(made)]) == 2
    assert "pip install 's3mount[dask]'" in capsys.readouterr().err
