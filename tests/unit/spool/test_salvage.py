"""A journal that was damaged in every way: what is closed goes on, the rest is kept and told."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from s3mount.crashpoints import listening
from s3mount.errors import LocalDiskError
from s3mount.refs import Attributes, ContentRef
from s3mount.spool.journal import salvage
from s3mount.spool.journal.changes import ABSENT, Copy, Delete, Put
from s3mount.spool.journal.labels import read_label
from s3mount.spool.journal.states import Event, State
from s3mount.spool.spool import Spool
from tests.sim.world import inline

ATTRIBUTES = Attributes(0o100644, 1, 2, 3, 4, 5)
FILES = 40


def opened(folder: Path) -> Spool:
    folder.mkdir(exist_ok=True)
    return Spool.open(folder, size_bytes_max=1 << 20, offload=inline)


def put(spool: Spool, key: str, data: bytes) -> Put:
    """A closed file."""
    blob = spool.new_blob()
    spool.grew(blob.write(0, data))
    blob.release()
    change = Put(key=key, attributes=ATTRIBUTES, blob_id=blob.id, expected=ABSENT, tried=(7,) * 9)
    spool.record([change])
    return change


def filled(folder: Path) -> dict[str, bytes]:
    """A state folder with many closed files, a move and a deletion; what the files hold."""
    spool = opened(folder)
    wanted = {f"dir/file-{number:03}": b"%d" % number * 20 for number in range(FILES)}
    for key, data in wanted.items():
        put(spool, key, data)
    source = ContentRef("from", "e", 1)
    spool.record([Copy(key="to", source=source, attributes=ATTRIBUTES)])
    spool.record([Delete(key="from", expected="e")])
    spool.close()
    return wanted


def content(spool: Spool) -> dict[str, bytes]:
    return {
        key: spool.live_blobs[change.blob_id].read(0, 1 << 20)
        for key, change in spool.changes.items()
        if isinstance(change, Put)
    }


def journal_of(folder: Path) -> Path:
    return folder / salvage.JOURNAL


def garbage(folder: Path) -> None:
    journal_of(folder).write_bytes(os.urandom(20_000))


def emptied(folder: Path) -> None:
    journal_of(folder).write_bytes(b"")


def removed(folder: Path) -> None:
    journal_of(folder).unlink()


def cut_in_half(folder: Path) -> None:
    os.truncate(journal_of(folder), journal_of(folder).stat().st_size // 2)


def a_page_of_zeros(folder: Path) -> None:
    with journal_of(folder).open("r+b") as file:
        # Where the rows lie; the first pages are the schema and the tables' roots.
        file.seek(file.seek(0, os.SEEK_END) // 4096 * 5 // 6 * 4096)
        file.write(bytes(4096))


def another_database(folder: Path) -> None:
    removed(folder)
    with sqlite3.connect(journal_of(folder)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def a_table_less(folder: Path) -> None:
    with sqlite3.connect(journal_of(folder)) as connection:
        connection.execute("DROP TABLE change")
    connection.close()


def rows_of_nonsense(folder: Path) -> None:
    with sqlite3.connect(journal_of(folder)) as connection:
        connection.execute("UPDATE change SET body = x'c1ff' WHERE key LIKE '%2'")
        connection.execute("UPDATE change SET body = 'text' WHERE key LIKE '%3'")
        connection.execute("UPDATE change SET key = x'ff00fe' WHERE key LIKE '%004'")
    connection.close()


def a_row_of_another_key(folder: Path) -> None:
    with sqlite3.connect(journal_of(folder)) as connection:
        connection.execute("UPDATE change SET key = 'elsewhere' WHERE key LIKE '%004'")
    connection.close()


DAMAGES = (
    *(garbage, emptied, removed, cut_in_half, a_page_of_zeros, another_database, a_table_less),
    *(rows_of_nonsense, a_row_of_another_key),
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_closed_file_goes_on_and_the_damage_is_reported(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "state"
    wanted = filled(folder)
    damage(folder)
    spool = opened(folder)
    assert content(spool) == wanted
    assert all(change.state is State.QUEUED for change in spool.changes.values())
    assert spool.used_bytes == sum(map(len, wanted.values()))
    [report] = spool.damages
    assert not report.is_open
    assert report.kept_blobs == ()
    assert Path(report.folder).parent == folder / "damaged"
    assert report.why in str(report)
    spool.close()
    again = opened(folder)
    assert content(again) == wanted
    assert again.damages == [report], "it is told as long as its folder is there, and only once"
    again.close()


@pytest.mark.parametrize("damage", [garbage, cut_in_half, a_page_of_zeros])
def test_the_damaged_journal_is_kept_as_it_was(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "state"
    filled(folder)
    damage(folder)
    as_it_was = journal_of(folder).read_bytes()
    spool = opened(folder)
    [report] = spool.damages
    assert (Path(report.folder) / salvage.JOURNAL).read_bytes() == as_it_was
    spool.close()


def test_rows_before_and_behind_a_damaged_page_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    filled(folder)
    a_page_of_zeros(folder)
    spool = opened(folder)
    [report] = spool.damages
    assert 0 < report.saved < FILES + 2
    assert report.saved + len(report.adopted) >= FILES
    spool.close()


def test_a_lost_write_ahead_log_loses_no_closed_file(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    wanted = filled(folder)
    spool = opened(folder)
    put(spool, "late", b"late")
    put(spool, "dir/file-001", b"rewritten")
    log = Path(f"{journal_of(folder)}-wal")
    assert log.stat().st_size
    # As after a kill: the process's own end would fold the log into the database.
    copy = tmp_path / "copy"
    os.system(f"cp -a {folder} {copy}")
    spool.close()
    os.truncate(copy / log.name, 0)
    again = opened(copy)
    assert content(again) == {**wanted, "late": b"late", "dir/file-001": b"rewritten"}
    [report] = again.damages
    assert set(report.adopted) == {"late", "dir/file-001"}
    again.close()


def test_a_kill_between_a_label_and_its_row_is_no_damage(tmp_path: Path) -> None:
    folder = tmp_path / "state"

    def kill(step: str) -> None:
        if step == "spool: labelled":
            raise Killed

    spool = opened(folder)
    put(spool, "before", b"before")
    with listening(kill), pytest.raises(Killed):
        put(spool, "a", b"x")
    spool.close()
    again = opened(folder)
    assert content(again) == {"before": b"before"}, "nobody was told of the other"
    assert again.damages == []
    assert len(again.blobs.ids()) == 1
    again.close()


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the n-th step that changes the disk from now on be the last."""
    left = [0]

    def killing(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (Path, "rename"),
        (Path, "write_bytes"),
        (Path, "mkdir"),
        (Path, "unlink"),
        (os, "fsync"),
        (Spool, "_adopt"),
    ):
        monkeypatch.setattr(owner, name, killing(getattr(owner, name)))

    def arm(number: int) -> None:
        left[0] = number

    return arm


@pytest.mark.parametrize("damage", [garbage, a_page_of_zeros, removed, rows_of_nonsense])
def test_setting_aside_may_be_killed_at_every_step(
    tmp_path: Path, damage: Callable[[Path], None], kill_at: Callable[[int], None]
) -> None:
    template = tmp_path / "template"
    wanted = filled(template)
    damage(template)
    (template / "blobs" / "nobodys").write_bytes(b"no label")
    kills = 0
    for number in range(1, 500):
        folder = tmp_path / f"state-{number}"
        os.system(f"cp -a {template} {folder}")
        kill_at(number)
        try:
            opened(folder).close()
        except Killed:
            kills += 1
        else:
            break
        finally:
            kill_at(0)
        spool = opened(folder)
        assert content(spool) == wanted, f"killed at step {number}"
        kept = list((folder / "damaged").glob("*/blobs/nobodys"))
        assert [path.read_bytes() for path in kept] == [b"no label"]
        spool.close()
    assert kills > 8
    assert kills < 499


def test_without_labels_what_nobody_claims_is_kept_with_the_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "no extended attributes here")

    monkeypatch.setattr(os, "setxattr", refuse)
    folder = tmp_path / "state"
    wanted = filled(folder)
    garbage(folder)
    spool = opened(folder)
    assert spool.changes == {}
    [report] = spool.damages
    held = {
        (Path(report.folder) / "blobs" / kept.blob_id).read_bytes() for kept in report.kept_blobs
    }
    assert held == set(wanted.values())
    assert all("never closed" in kept.why for kept in report.kept_blobs)
    spool.close()


def test_a_blob_that_lost_bytes_is_not_adopted(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    spool = opened(folder)
    change = put(spool, "a", b"x" * 100)
    spool.close()
    os.truncate(folder / "blobs" / change.blob_id, 60)
    garbage(folder)
    spool = opened(folder)
    assert spool.changes == {}
    [report] = spool.damages
    [kept] = report.kept_blobs
    assert (kept.key, kept.size, kept.why) == ("a", 60, "of its 100 bytes 60 are there")
    spool.close()


def test_a_journal_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    wanted = filled(folder)
    with sqlite3.connect(journal_of(folder)) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LocalDiskError, match="newer release of s3mount"):
        opened(folder)
    assert not (folder / "damaged").exists()
    salvage.heal(folder, newer_too=True)
    spool = opened(folder)
    assert content(spool) == wanted
    spool.close()


def test_what_is_done_or_replaced_leaves_no_label(tmp_path: Path) -> None:
    spool = opened(tmp_path / "state")
    done, removed_, replaced = (put(spool, key, b"x") for key in ("done", "removed", "replaced"))
    # As if somebody had all of them open: the files stay.
    blobs = [spool.live_blobs[change.blob_id] for change in (done, removed_, replaced)]
    for blob in blobs:
        blob.open_files += 1
    assert all(read_label(blob.path) is not None for blob in blobs)
    done.apply(Event.START)
    spool.finish(done)
    spool.record([], ["removed"])
    newer = put(spool, "replaced", b"y")
    assert [read_label(blob.path) for blob in blobs] == [None] * 3
    label = read_label(spool.live_blobs[newer.blob_id].path)
    assert isinstance(label, Put)
    assert (label.key, label.seq) == ("replaced", newer.seq)
    spool.close()


def test_a_moved_file_has_a_label_of_its_new_name(tmp_path: Path) -> None:
    spool = opened(tmp_path / "state")
    change = put(spool, "old", b"x")
    spool.record([Put(key="new", attributes=ATTRIBUTES, blob_id=change.blob_id)], ["old"])
    label = read_label(spool.live_blobs[change.blob_id].path)
    assert label is not None
    assert label.key == "new"
    spool.close()
