"""The fsspec file system, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from s3mount import SomeFailedError
from s3mount.api.filesystem import S3MountFileSystem
from tests.servers import S3Server


@pytest.fixture
def files(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[S3MountFileSystem]:
    for variable, value in s3_server.environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = S3MountFileSystem(
        endpoint_url=s3_server.endpoint_url, path_style=True, skip_instance_cache=True
    )
    yield made
    made.close()


def test_what_is_written_is_found_read_copied_and_removed(
    files: S3MountFileSystem, bucket: str, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 50_000
    with files.open(f"s3mount://{bucket}/d/large", "wb") as file:
        file.write(data[:10])
        file.write(data[10:])
    files.pipe_file(f"{bucket}/d/small", b"small")
    assert files.ls(f"{bucket}/d", detail=False) == [f"{bucket}/d/large", f"{bucket}/d/small"]
    assert files.ls(bucket) == [{"name": f"{bucket}/d", "type": "directory", "size": 0}]
    assert files.ls(f"{bucket}/d/small", detail=False) == [f"{bucket}/d/small"]
    assert files.info(f"{bucket}/d/large")["size"] == files.size(f"{bucket}/d/large") == len(data)
    assert files.isdir(f"{bucket}/d")
    assert files.isfile(f"{bucket}/d/small")
    assert abs(files.modified(f"{bucket}/d/small") - datetime.now(UTC)) < timedelta(hours=1)
    assert files.cat_file(f"{bucket}/d/large", 5, 105) == data[5:105]
    assert files.cat(f"{bucket}/d/large") == data
    with files.open(f"{bucket}/d/large") as file:
        file.seek(-3, 2)
        assert file.read() == data[-3:]
    files.get(f"{bucket}/d/", str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got" / "large").read_bytes() == data
    files.put(str(tmp_path / "got"), f"{bucket}/put", recursive=True)
    files.cp(f"{bucket}/d", f"{bucket}/copied", recursive=True)
    assert files.cat(f"{bucket}/copied/small") == b"small"
    files.mv(f"{bucket}/copied/small", f"{bucket}/moved")
    assert [name.removeprefix(bucket) for name in files.find(bucket)] == [
        *("/copied/large", "/d/large", "/d/small", "/moved", "/put/large", "/put/small"),
    ]
    files.rm(f"{bucket}/d", recursive=True)
    assert not files.exists(f"{bucket}/d")


def test_what_is_not_there_is_not_found(files: S3MountFileSystem, bucket: str) -> None:
    for look in (files.info, files.ls, files.cat_file, files.open):
        with pytest.raises(FileNotFoundError):
            look(f"{bucket}/none")
    with pytest.raises(FileNotFoundError):
        files.cp_file(f"{bucket}/none", f"{bucket}/other")
    assert files.ls(bucket) == []
    with pytest.raises(NotImplementedError, match="whole"):
        files.open(f"{bucket}/key", "ab")


def test_a_block_that_fails_sends_nothing(files: S3MountFileSystem, bucket: str) -> None:
    def write() -> None:
        with files.open(f"{bucket}/key", "wb") as file:
            file.write(b"half")
            raise KeyError("mine")

    with pytest.raises(KeyError):
        write()
    assert not files.exists(f"{bucket}/key")
    files.pipe_file(f"{bucket}/key", b"there")
    file = files.open(f"{bucket}/key", "xb")
    with pytest.raises(SomeFailedError):
        file.close()
    assert files.cat(f"{bucket}/key") == b"there"


def test_pyarrow_reads_and_writes_parquet(files: S3MountFileSystem, bucket: str) -> None:
    table = pa.table({"a": list(range(10_000)), "b": [str(n) for n in range(10_000)]})
    parquet.write_table(table, f"{bucket}/t.parquet", filesystem=files)
    assert parquet.read_table(f"{bucket}/t.parquet", filesystem=files).equals(table)
