"""A snapshot in words and as JSON."""

from __future__ import annotations

import json

import pytest

from s3mount import status
from s3mount.status import Conflict, Damaged, Pending, PendingChange, Snapshot


def snapshot(**settings: object) -> Snapshot:
    values = {"mountpoint": "/mnt/x", "source": "data", "phase": "serving", "pid": 7}
    return Snapshot(**(values | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 60, "3072.0 PiB"),
    ],
)
def test_sizes_in_words(size_bytes: int, text: str) -> None:
    assert status.size_text(size_bytes) == text


def test_nothing_pending() -> None:
    text = status.to_text(snapshot(state_dir="/s", cache_dir="/c", log_path="/l"))
    assert text == "/mnt/x: data (pid 7)\n  everything is in S3\n  state /s\n  cache /c\n  log   /l"


def test_what_was_not_sent() -> None:
    text = status.to_text(snapshot(uploads={"saved_bytes": 3 << 20, "deduplicated": 2}))
    assert "3.0 MiB were not sent, as S3 had them already" in text
    assert "not sent" not in status.to_text(snapshot(uploads={"saved_bytes": 0}))


def test_what_is_pending_and_why() -> None:
    changes = (
        PendingChange("a/b", "put", "parked", 5, 3, "403 AccessDenied"),
        PendingChange("c", "put", "queued", 1),
    )
    pending = Pending(2, 6, {"queued": 1, "parked": 1, "sending": 0}, changes)
    text = status.to_text(snapshot(pending=pending, endpoint_url="http://x", read_only=True))
    assert text.splitlines() == [
        "/mnt/x: data (at http://x, read-only, pid 7)",
        "  not in S3 yet: 2 changes (6 B): 1 queued, 1 parked",
        "  parked after 3 tries: a/b: 403 AccessDenied",
        "  once the reason is gone: s3mount retry; a copy of it: s3mount export",
    ]


def test_conflicts_damage_and_what_the_store_honours() -> None:
    held = PendingChange("a", "put", "parked", 5, 1, "somebody else changed the object", True)
    text = status.to_text(
        snapshot(
            pending=Pending(1, 5, {"parked": 1}, (held,)),
            conflicts=(
                Conflict(0, "b", "kept-both", "b.conflict-h-1"),
                Conflict(0, "c", "overwritten"),
                Conflict(0, "a", "held"),
                Conflict(0, "decided since", "held"),
                Conflict(0, "d", "not-deleted"),
            ),
            damaged=(Damaged("/s/damaged/1", 0, "the journal is gone", kept_blobs=({}, {})),),
            store_honours={
                "if_match": True,
                "if_absent": False,
                "checksum": "crc64nvme",
                "atomic": False,
            },
            versioning="off",
        )
    )
    told = [line for line in text.splitlines() if "conflict at" not in line]
    assert told[2:] == [
        "  conflict after 1 try: a: somebody else changed the object",
        "  to decide a conflict: s3mount retry [--overwrite], or discard",
        "  damaged: the journal is gone; set aside in /s/damaged/1, with 2 files that nobody claims",
        (
            "  S3 does not honour If-None-Match on PUT: a look just before stands for it; "
            "verifies crc64nvme; keeps no versions"
        ),
        (
            "  S3 honours conditions, but not atomically: of several writers that create or change the "
            "same key at once, more than one may win, and only the last one's file is kept"
        ),
    ]
    assert ": b: theirs has the name, yours is b.conflict-h-1" in text
    assert ": c: yours replaced theirs" in text
    assert ": a: yours waits for you to decide" in text
    assert ": d: theirs stays, though you removed it" in text
    assert "decided since" not in text


ALL_HONOURED: dict[str, object] = dict.fromkeys(status.HONOURS, True) | {"checksum": "crc64nvme"}


@pytest.mark.parametrize(
    ("honours", "said"),
    [
        (
            ALL_HONOURED,
            "  S3 honours every condition of writes and deletions; verifies crc64nvme; keeps versions",
        ),
        (
            {"reason": "no answer"},
            "  S3 was not tried for all it may honour: no answer; keeps versions",
        ),
        ({"may_write": False, "reason": "403"}, "  S3 keeps versions"),
    ],
)
def test_what_is_honoured_is_one_line(honours: dict[str, object], said: str) -> None:
    """Where all is well, and where the reason is told by another line."""
    lines = status.to_text(snapshot(store_honours=honours, versioning="enabled")).splitlines()
    assert lines[2] == said
    assert len(lines) == 3 + (honours.get("may_write") is False)


def test_all_that_is_honoured_is_told_when_asked_for() -> None:
    told = status.to_text(snapshot(store_honours=ALL_HONOURED | {"if_match": False}), is_all=True)
    lines = told.splitlines()
    assert "  S3 does not honour If-Match on PUT" in lines
    assert "  S3 verifies crc64nvme" in lines
    assert lines[2].startswith("  S3 honours If-None-Match on PUT, conditions on Complete")


def test_little_room_is_told() -> None:
    text = status.to_text(
        snapshot(spool={"used_bytes": 95, "max_bytes": 100, "disk_free_bytes": 1 << 20})
    )
    assert "the spool holds 95 B of 100 B (--spool-size)" in text
    assert "the disk of the state folder has 1.0 MiB left" in text
    roomy = {"used_bytes": 50, "max_bytes": 100, "disk_free_bytes": 1 << 30}
    assert len(status.to_text(snapshot(spool=roomy)).splitlines()) == 2


def test_one_file_in_words() -> None:
    text = status.file_to_text({"key": "a", "etag": None, "mode": "0o100644", "mtime_ns": 0})
    told = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert told["key"] == "a"
    assert told["mode"] == "-rw-r--r--"
    assert told["mtime"].startswith(("1970-01-01 ", "1969-12-31 "))
    assert "etag" not in told


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (".s3mount/", "the top folder's attributes"),
        ("prefix/.s3mount/", "the top folder's attributes"),
        ("my.s3mount/", "my.s3mount/"),
        ("file", "file"),
    ],
)
def test_keys_as_people_know_them(key: str, shown: str) -> None:
    change = PendingChange(key, "put", "parked", 0, 1, "refused")
    text = status.to_text(snapshot(pending=Pending(1, 0, {"parked": 1}, (change,))))
    assert f"parked after 1 try: {shown}: refused" in text


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("dead", "its process is gone"),
        ("silent", "does not answer"),
        ("unknown", "cannot be asked"),
        ("draining", "everything is in S3"),
        ("ending", "everything is in S3"),
    ],
)
def test_every_phase_has_its_words(phase: str, said: str) -> None:
    text = status.to_text(snapshot(phase=phase))
    assert text.startswith(f"/mnt/x: data ({phase}, pid 7)")
    assert said in text


def test_what_is_kept_without_a_mount() -> None:
    ended = status.to_text(snapshot(phase="ended", pid=None, state_dir="/s", pending=Pending(2, 9)))
    assert ended.splitlines() == [
        "/mnt/x: data",
        "  not mounted; 2 changes (9 B) kept here and sent at the next mount",
        "  or by s3mount recover /s",
        "  state /s",
    ]
    assert "its process was killed" in status.to_text(snapshot(phase="lost", pid=None))


def test_json_holds_everything() -> None:
    found = json.loads(status.to_json([snapshot(s3={"requests": 3.0})]))
    assert found[0]["mountpoint"] == "/mnt/x"
    assert found[0]["pending"] == {"changes": 0, "bytes": 0, "states": {}, "list": []}
    assert found[0]["s3"] == {"requests": 3.0}


def test_a_file_in_words() -> None:
    text = status.file_to_text({"key": "a/b", "etag": None, "version_id": "v1", "size": 3})
    assert text == "key         a/b\nversion id  v1\nsize        3"


def test_what_helps_depends_on_the_reason() -> None:
    kinds = ("DamagedBlobError", "ArchivedError", "AccessDeniedError")
    changes = tuple(
        PendingChange(kind, "put", "parked", 1, 1, "no", error_kind=kind) for kind in kinds
    )
    text = status.to_text(snapshot(pending=Pending(3, 3, {"parked": 3}, changes)))
    assert text.splitlines()[-3:] == [
        "  where the reason cannot pass: a copy of what is here by s3mount export, then s3mount discard",
        "  archived: s3mount restore PATH, and once it is back s3mount retry; or s3mount discard",
        "  once the reason is gone: s3mount retry; a copy of it: s3mount export",
    ]
    text = status.to_text(snapshot(pending=Pending(1, 1, {"parked": 1}, changes[:1])))
    assert "retry" not in text
