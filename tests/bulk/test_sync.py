"""sync on real servers, and how many requests it takes where nothing is to be done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.bulk.places import Places
from tests.fuse.bucket_contents import wait_until
from tests.servers.counting import Relay

pytestmark = pytest.mark.each_server

MIB = 1 << 20
NAMES = ["a", "a-b/c", "a.d", "b/x y", "d/e/f.tmp", "z😀"]


@pytest.fixture
def folder(places: Places) -> Path:
    made = places.folder / "d"
    for name in NAMES:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    return made


def keys(places: Places) -> list[str]:
    return [key.removeprefix("t/") for key in places.keys()]  # noqa: SIM118


def summary(places: Places, *words: str, status: int = 0) -> tuple[int, int, int]:
    """Objects looked at, of these left alone, and failed."""
    told = places.told("sync", *words, status=status)[-1]
    assert told["summary"] == "sync"
    return told["objects"], told["skipped"], told["failed"]


def test_up_copies_what_differs_and_deletes_what_is_too_much(places: Places, folder: Path) -> None:
    assert summary(places, "d", "{b}/t/") == (6, 0, 0)
    assert keys(places) == sorted(NAMES)
    assert summary(places, "d", "{b}/t") == (6, 6, 0)
    # The same size, but older: by its kept time it is another, though S3 has a newer object.
    (folder / "a").write_text("A")
    os.utime(folder / "a", (1, 1))
    (folder / "new").write_text("new")
    (folder / "a.d").unlink()
    plan = places.lines("sync", "-n", "--delete", "--exclude", "b/", "d", "{b}/t/")
    target = f"s3://{places.bucket}/t"
    assert sorted(plan) == [f"cp d/a {target}/a", f"cp d/new {target}/new", f"rm {target}/a.d"]
    (folder / "b/x y").unlink()
    refused = places.run(
        "sync", "--delete", "--max-delete", "1", "d", "{b}/t/", status=1
    ).stderr.decode()
    assert "nothing was deleted: 2 are too much" in refused
    assert keys(places) == sorted([*NAMES, "new"])
    # What is excluded is neither copied nor deleted.
    assert summary(places, "--delete", "--exclude", "b/", "d", "{b}/t/") == (6, 5, 0)
    assert keys(places) == sorted({*NAMES, "new"} - {"a.d"})
    body = places.client.get_object(Bucket=places.bucket, Key="t/a")["Body"].read()
    assert body == b"A"


def test_down_and_across_do_the_same(places: Places, folder: Path) -> None:
    large = random.Random(4).randbytes(17 * MIB)
    (folder / "large").write_bytes(large)
    places.run("sync", "-q", "d", "{b}/t/")
    places.run("sync", "-q", "{b}/t/", "there")
    there = places.folder / "there"
    assert (there / "large").read_bytes() == large
    assert (there / "a").stat().st_mtime == pytest.approx((folder / "a").stat().st_mtime, abs=0.001)
    assert summary(places, "{b}/t/", "there") == (7, 7, 0)
    assert summary(places, "--checksum", "there", "{b}/t/") == (7, 7, 0)
    (there / "a").write_text("B")
    os.utime(there / "a", ns=((folder / "a").stat().st_atime_ns, (folder / "a").stat().st_mtime_ns))
    assert summary(places, "--size-only", "{b}/t/", "there") == (7, 7, 0)
    assert summary(places, "--checksum", "{b}/t/", "there") == (7, 6, 0)
    assert (there / "a").read_text() == "a"
    (there / "extra").write_text("")
    places.run("sync", "--delete", "{b}/t/", "there")
    assert not (there / "extra").exists()
    assert summary(places, "{b}/t/", "{b}/u/") == (7, 0, 0)
    assert summary(places, "{b}/t/", "{b}/u/") == (7, 7, 0)


def test_what_is_refused(places: Places, folder: Path) -> None:
    places.put("t/a", body=b"x")
    assert "would empty" in places.error("sync", "--delete", "{b}/none/", "{b}/t/", status=5)
    assert "choose by --include" in places.error("sync", "--delete", "{b}/t/*", "d", status=2)
    assert "neither is in S3" in places.error("sync", "d", "e", status=2)
    assert "No such file" in places.error("sync", "none", "{b}/t/", status=5)
    assert places.keys() == ["t/a"]
    # One that cannot be read: the rest is copied, and nothing deleted.
    (folder / "gone").symlink_to("nowhere")
    places.put("t/more", body=b"x")
    done = places.run("sync", "--delete", "d", "{b}/t/", status=1)
    assert b"nothing was deleted (1 are too much), as some failed" in done.stderr
    assert "more" in keys(places)
    # A name that the disk cannot hold.
    places.put("t/" + "n" * 300, body=b"x")
    done = places.run("sync", "{b}/t/", "there", status=1)
    assert b"is longer than the 255 bytes" in done.stderr
    assert (places.folder / "there/more").read_bytes() == b"x"


def test_no_clobber_and_update_leave_what_is_there(places: Places, folder: Path) -> None:
    places.put("t/a", body=b"theirs")
    os.utime(folder / "a", (1, 1))
    assert summary(places, "--update", "--exclude", "[bdz]*", "d", "{b}/t/") == (3, 1, 0)
    assert summary(places, "--no-clobber", "d", "{b}/t/") == (6, 3, 0)
    body = places.client.get_object(Bucket=places.bucket, Key="t/a")["Body"].read()
    assert body == b"theirs"


def test_nothing_to_do_takes_a_list_and_no_more(places: Places, folder: Path) -> None:
    """After a run that copied, in both directions, by times and by bytes; once more after others put the objects."""
    with Relay(places.server.endpoint_url) as relay:

        def asked(*words: str) -> tuple[int, int]:
            """HEADs, and what brings or moves bytes; beside lists."""
            before = len(relay.requests("HEAD")), len(relay.requests("PUT"))
            places.run("sync", "-q", *words, endpoint_url=relay.url)
            return (
                len(relay.requests("HEAD")) - before[0],
                len(relay.requests("PUT")) - before[1],
            )

        asked("d", "{b}/t/")
        assert asked("d", "{b}/t/") == (0, 0)
        assert asked("d", "{b}/t/", "--checksum") == (0, 0)
        asked("{b}/t/", "back")
        assert asked("{b}/t/", "back") == (0, 0)
        # What is downloaded was not read again: once it is, and then it is known.
        assert asked("{b}/t/", "back", "--checksum")[0] == 6
        assert asked("{b}/t/", "back", "--checksum") == (0, 0)
        for name in NAMES:
            places.put(f"u/{name}", body=name.encode())
        assert asked("d", "{b}/u/") == (6, 0)
        assert asked("d", "{b}/u/") == (0, 0)
        gets = [each for each in relay.requests("GET") if "list-type" not in each.query]
        assert len(gets) == 6


def test_by_bytes_what_was_touched_is_read_again(places: Places, folder: Path) -> None:
    """Other bytes of the same size and time of change: no run by times can see them, one by bytes does."""
    assert summary(places, "--checksum", "d", "{b}/t/") == (6, 0, 0)
    assert summary(places, "--checksum", "d", "{b}/t/") == (6, 6, 0)
    about = (folder / "a").stat()
    (folder / "a").write_text("?")
    os.utime(folder / "a", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert summary(places, "d", "{b}/t/") == (6, 6, 0)
    assert summary(places, "--checksum", "d", "{b}/t/") == (6, 5, 0)
    body = places.client.get_object(Bucket=places.bucket, Key="t/a")["Body"].read()
    assert body == b"?"


def test_a_manifest_as_source_is_a_checkout(places: Places) -> None:
    places.put("a", "b")
    places.run("manifest", "create", "{b}", "-o", "m.csv")
    places.run("sync", "-q", "m.csv", "there")
    assert (places.folder / "there/a").read_text() == "a"
    assert "means nothing then" in places.error("sync", "--update", "m.csv", "there", status=2)


def test_interrupted_it_leaves_nothing_half(places: Places, folder: Path) -> None:
    (folder / "large").write_bytes(random.Random(5).randbytes(9 * MIB))
    with Relay(places.server.endpoint_url) as relay, relay.holding("PUT"):
        running = subprocess.Popen(
            places.argv("sync", "d", "{b}/t/", endpoint_url=relay.url),
            env=places.environment(),
            cwd=places.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: len(relay.requests("PUT")) > 6, "it sends", timeout_s=60)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
    assert "large" not in keys(places)
    assert summary(places, "d", "{b}/t/")[2] == 0
    assert keys(places) == sorted([*NAMES, "large"])
