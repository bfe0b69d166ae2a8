from __future__ import annotations

import sqlite3
from pathlib import Path
from unittest import mock

import pytest

from s3mount.errors import MountError
from s3mount.manifest.model import Entry
from s3mount.refs import Attributes, ContentRef
from s3mount.spool.journal.changes import Copy, Put
from s3mount.spool.journal.put_log import NAME, PutLog, read_puts

CHANGE = Put(key="any", attributes=Attributes(0o100644, 0, 0, 5, 0, 0))


def opened(folder: Path, **settings: int) -> PutLog:
    puts = PutLog(folder, **settings)
    puts.open()
    return puts


def put(puts: PutLog, key: str, version_id: str | None = "v1") -> None:
    puts.stored([(key, CHANGE, ContentRef(key, "e", 7, version_id))])


def names(folder: Path, prefix: str = "", paths: tuple[str, ...] = ()) -> list[str]:
    return [entry.key for entry in read_puts(folder, "b", prefix, paths)]


def test_the_last_version_of_each_key_is_listed_in_order(tmp_path: Path) -> None:
    puts = opened(tmp_path)
    for key in ("é", "a\x00b", "z", "a", "gone"):
        put(puts, key)
    put(puts, "a", "v2")
    put(puts, "z", None)
    copy = Copy(key="plain", source=ContentRef("a", "e", 0))
    puts.stored(
        [
            ("gone", CHANGE, None),
            ("never", CHANGE, None),
            ("plain", copy, ContentRef("plain", "e", 0, "v3")),
        ]
    )
    assert list(read_puts(tmp_path, "b", "")) == [
        Entry("b", "a", "v2", 7, "e", None, 0o100644, 5),
        Entry("b", "a\x00b", "v1", 7, "e", None, 0o100644, 5),
        Entry("b", "plain", "v3", 0, "e"),
        Entry("b", "z", "null", 7, "e", None, 0o100644, 5),
        Entry("b", "é", "v1", 7, "e", None, 0o100644, 5),
    ]
    puts.close(is_all_sent=False)


def test_paths_are_below_the_mounts_prefix(tmp_path: Path) -> None:
    puts = opened(tmp_path)
    for key in ("p/a/", "p/a/1", "p/ab", "p/c"):
        put(puts, key)
    assert names(tmp_path, "p/", ("a",)) == ["p/a/", "p/a/1"]
    assert names(tmp_path, "p/", ("c", "ab/")) == ["p/ab", "p/c"]
    assert len(names(tmp_path, "p/", ("",))) == 4
    puts.close(is_all_sent=False)


def test_a_mount_that_was_killed_is_gone_on_with_and_one_that_ended_well_is_not(
    tmp_path: Path,
) -> None:
    killed = opened(tmp_path)
    put(killed, "killed")
    puts = opened(tmp_path)
    put(puts, "drained too late")
    puts.close(is_all_sent=False)
    puts = opened(tmp_path)
    put(puts, "last")
    assert names(tmp_path) == ["drained too late", "killed", "last"]
    puts.close(is_all_sent=True)
    assert names(tmp_path) == ["drained too late", "killed", "last"]
    puts = opened(tmp_path)
    assert names(tmp_path) == []
    puts.close(is_all_sent=True)
    puts.close(is_all_sent=True)
    killed.close(is_all_sent=False)


def test_a_list_that_may_lack_a_key_says_so(tmp_path: Path) -> None:
    puts = opened(tmp_path, puts_max=2)
    for key in ("a", "b"):
        put(puts, key)
    assert names(tmp_path) == ["a", "b"]
    put(puts, "c")
    with pytest.raises(MountError, match="more than 2 keys were put"):
        names(tmp_path)
    puts.close(is_all_sent=False)
    puts = opened(tmp_path)
    with pytest.raises(MountError, match="manifest create"):
        names(tmp_path)
    puts.close(is_all_sent=True)
    puts = opened(tmp_path)
    assert names(tmp_path) == []
    puts.close(is_all_sent=True)


def test_after_a_restart_of_the_machine_rows_may_be_missing(tmp_path: Path) -> None:
    puts = opened(tmp_path)
    put(puts, "a")
    puts.close(is_all_sent=False)
    with mock.patch("s3mount.spool.journal.put_log.boot_id", return_value="another"):
        opened(tmp_path).close(is_all_sent=False)
    with pytest.raises(MountError, match="the machine was restarted"):
        names(tmp_path)
    # Made, and nothing of it flushed.
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / NAME).write_bytes(b"")
    opened(tmp_path).close(is_all_sent=False)
    with pytest.raises(MountError, match="the machine was restarted"):
        names(tmp_path)


def test_a_damaged_list_is_begun_anew_and_known_not_to_be_whole(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no database" * 1000)
    puts = opened(tmp_path)
    put(puts, "a")
    with pytest.raises(MountError, match="the list could not be read"):
        names(tmp_path)
    puts.close(is_all_sent=True)


def test_a_full_disk_holds_nothing_up(tmp_path: Path) -> None:
    puts = opened(tmp_path)
    put(puts, "a")
    assert puts._database is not None
    (pages,) = puts._database.execute("PRAGMA page_count").fetchone()
    puts._database.execute(f"PRAGMA max_page_count={pages}")
    for number in range(200):
        put(puts, f"{number}" * 50)
    with pytest.raises(MountError, match=r"could not be noted|has no list"):
        names(tmp_path)
    puts.close(is_all_sent=True)


def test_without_a_list_it_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="has no list"):
        names(tmp_path)
    put(PutLog(tmp_path), "not opened")
    with pytest.raises(MountError, match="has no list"):
        names(tmp_path)
    sqlite3.connect(tmp_path / NAME).close()
    (tmp_path / NAME).write_bytes(b"x" * 5000)
    with pytest.raises(MountError, match="cannot be read"):
        names(tmp_path)
