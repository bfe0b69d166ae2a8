"""Opening a database: what cannot be opened is said, and leaves nothing open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3mount import db
from s3mount.errors import LocalDiskError


def test_what_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    db.open_database(path, ["CREATE TABLE a (b)", "CREATE TABLE c (d)"]).close()
    (tmp_path / "damaged").write_bytes(b"no database" * 1000)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LocalDiskError, match="newer release"):
        db.open_database(path, ["CREATE TABLE a (b)"])
    with pytest.raises(LocalDiskError, match="cannot use the database"):
        db.open_database(tmp_path / "damaged", ["CREATE TABLE a (b)"])
    with pytest.raises(LocalDiskError, match="cannot use the database"):
        db.open_database(tmp_path / "c.sqlite", ["CREATE TABLE a (b)", "nonsense"])
    assert set(os.listdir("/proc/self/fd")) == before
