"""The commands below ``s3mount manifest``, on a bucket in memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio

from s3mount.app import manifests
from s3mount.cli.commands import main
from s3mount.clock import ManualClock
from s3mount.manifest.times import format_time
from s3mount.refs import ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from tests import manifest_access


class Bucket:
    """A bucket ``b`` and its writer; each write is a second later than the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.monkeypatch = monkeypatch
        self.store = MemoryStore("b", versioning="enabled", clock=self.clock)
        manifest_access.use(self.store, monkeypatch)

    def put(self, key: str, body: bytes = b"1") -> str:
        self.clock.advance(1)

        async def put() -> str:
            return str((await self.store.put(key, body, ObjectHeaders())).version_id)

        return trio.run(put)

    def delete(self, key: str) -> None:
        self.clock.advance(1)
        trio.run(self.store.delete, key)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket(monkeypatch)


def test_diff_ends_as_diff_does(
    bucket: Bucket,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.put("a")
    made = str(tmp_path / "m.csv")
    assert main(["manifest", "create", "b", "-o", made]) == 0
    assert main(["manifest", "diff", made, "s3://b"]) == 0
    bucket.put("a", b"22")
    assert main(["manifest", "diff", made, "s3://b"]) == 1
    (tmp_path / "bad.csv").write_text("key,version_id,size\na,v,x\n")
    for trouble in (
        [made, str(tmp_path / "missing")],
        [made, "s3://other"],
        [made, str(tmp_path / "bad.csv")],
        [made, made, "--at", "-3d"],
        [made, made, "--wrong"],
        [made, "s3://b/absent/"],
        ["s3://b/absent/", made],
        ["s3://b/absent/", "s3://b/absent/", "--at", format_time(bucket.clock.now_ns())],
    ):
        capsys.readouterr()
        assert main(["manifest", "diff", *trouble]) == 2, trouble
        assert capsys.readouterr().err.count("\n") == 1

    def interrupted(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifests, "diff", interrupted)
    assert main(["manifest", "diff", made, made]) == 130
    assert capsys.readouterr().err.strip() == "s3mount: interrupted"


def test_diff_takes_a_bucket_as_it_was(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.put("d/a")
    bucket.put("d/b")
    then = format_time(bucket.clock.now_ns())
    made = str(tmp_path / "m.csv")
    assert main(["manifest", "create", "s3://b/d", "-o", made, "--at", then]) == 0
    bucket.put("d/a", b"22")
    bucket.delete("d/b")
    bucket.put("d/c")
    capsys.readouterr()
    assert main(["manifest", "diff", "s3://b/d/", "s3://b/d/", "--at", then]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "! s3://b/d/a v00000003",
        "- s3://b/d/b v00000002",
        "+ s3://b/d/c v00000005",
    ]
    assert main(["manifest", "diff", made, "s3://b/d/", "--at", then]) == 0
    assert main(["manifest", "diff", "s3://b/d/", made, "--at", then]) == 0


def test_what_was_removed_is_no_slip_of_the_pen(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bucket, or a folder that the manifest knows, of which nothing is left: all of it is removed."""
    bucket.put("d/a")
    made, other = str(tmp_path / "m.csv"), str(tmp_path / "other.csv")
    assert main(["manifest", "create", "b", "-o", made]) == 0
    bucket.store = MemoryStore("b", versioning="off", clock=bucket.clock)
    manifest_access.use(bucket.store, bucket.monkeypatch)
    capsys.readouterr()
    for place in ("s3://b", "s3://b/d/"):
        assert main(["manifest", "diff", made, place]) == 1
        assert capsys.readouterr().out.startswith("- s3://b/d/a ")
    Path(other).write_text("bucket,key,version_id\nother,d/a,v\n")
    assert main(["manifest", "diff", other, "s3://b/d/"]) == 2
    assert "no key lies below s3://b/d/" in capsys.readouterr().err


def test_diff_prints_nothing_before_both_sides_are_known_to_be_sound(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, two = str(tmp_path / "m.csv"), str(tmp_path / "two.csv")
    Path(made).write_text("bucket,key,version_id\nb,a,1\n")
    Path(two).write_text("bucket,key,version_id\nb,y,1\nb,z,1\nb,z,2\n")
    for given in ([made, two], [two, made]):
        assert main(["manifest", "diff", *given]) == 2
        told = capsys.readouterr()
        assert (told.out, "names two versions of 'z'" in told.err) == ("", True)


def test_now_is_no_time_to_come(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.put("a")
    assert main(["manifest", "create", "b", "--json"]) == 0
    told = capsys.readouterr().err
    assert "999999999" not in told
    assert "999999Z" not in told


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["mount", "-", "m"], "- is a pipe"),
        (["checkout", "-", "d", "--at", "-3d"], "--at is for a bucket"),
        (["checkout", "./m.csv", "d", "--at", "-3d"], "--at is for a bucket"),
    ],
)
def test_a_manifest_is_not_taken_for_a_bucket(
    given: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text("key,version_id\na,v\n")
    (tmp_path / "m").mkdir()
    assert main(given) == 2
    assert said in capsys.readouterr().err


def test_a_manifest_may_come_through_a_pipe(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.put("a")
    made = tmp_path / "m.csv"
    assert main(["manifest", "create", "b", "-o", str(made)]) == 0
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for command in (["show"], ["verify", "--content"], ["restore", "--yes"], ["diff", str(made)]):
        writer = threading.Thread(target=fifo.write_bytes, args=(made.read_bytes(),))
        writer.start()
        assert main(["manifest", *command, str(fifo)]) == 0, command
        writer.join()
    assert main(["mount", str(fifo), str(tmp_path)]) == 2
    assert "is a pipe" in capsys.readouterr().err


def test_two_versions_of_a_key_are_refused_and_the_same_line_twice_is_not(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = bucket.put("a"), bucket.put("a", b"22")
    line = f"b,a,{second}\n"
    twice, two = tmp_path / "twice.csv", tmp_path / "two.csv"
    twice.write_text(f"bucket,key,version_id\n{line}{line}")
    two.write_text(f"bucket,key,version_id\n{line}b,a,{first}\n")
    for command in (["show"], ["verify"], ["restore", "--yes"], ["diff", "s3://b"]):
        assert main(["manifest", *command, str(twice)]) == 0, command
        capsys.readouterr()
        assert main(["manifest", *command, str(two)]) == (2 if command[0] == "diff" else 1)
        assert "names two versions of 'a'" in capsys.readouterr().err
