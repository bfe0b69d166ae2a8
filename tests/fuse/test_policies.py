"""What a person chose and decides, through the real mount and the commands: conflicts, refusals, fsync."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import parked_in, pending_of, status_of
from tests.fuse.outcomes import outcome
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import WRITING, Answer, Fault, Relay, Request

pytestmark = pytest.mark.needs_s3
MIB = 1 << 20

Make = Callable[..., Mount]


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with Relay(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture
def contents(bucket: str, s3_server: S3Server) -> S3Contents:
    """The bucket, past the relay."""
    return S3Contents(s3_server.boto3_client(), bucket)


def files(contents: S3Contents) -> dict[str, bytes]:
    return {key: contents.read(key) for key in contents.listing() if not key.endswith("/")}


def refuse_puts(
    status: int, code: str, name: str = ""
) -> Callable[[Request], Fault | Answer | None]:
    """Refuse to write objects with ``name`` in their key."""

    def decide(request: Request) -> Fault | Answer | None:
        is_object = request.path.strip("/").count("/") > 0 and name in request.path
        return Answer(status, code) if request.method == "PUT" and is_object else None

    return decide


def a_conflict(mount: Mount, contents: S3Contents, relay: Relay) -> None:
    """Somebody else writes ``file`` between our write and its upload."""
    (mount.path / "file").write_bytes(b"base")
    mount.wait()
    with relay.holding(*WRITING):
        (mount.path / "file").write_bytes(b"ours")
        contents.put("file", b"theirs")


def test_conflicts_are_shown_with_what_became_of_them(
    bucket: str, mount_factory: Make, relay: Relay, contents: S3Contents
) -> None:
    mount = mount_factory(bucket, endpoint_url=relay.url)
    a_conflict(mount, contents, relay)
    mount.wait()
    [event] = status_of(mount)["conflicts"]
    assert event["outcome"] == "kept-both"
    assert files(contents) == {"file": b"theirs", event["kept_as"]: b"ours"}
    text = mount.command("status", str(mount.path)).stdout
    assert f"file: theirs has the name, yours is {event['kept_as']}" in text
    assert "S3 honours" in text or "does not honour" in text


def test_overwrite_lets_ours_win(
    bucket: str, mount_factory: Make, relay: Relay, contents: S3Contents
) -> None:
    mount = mount_factory(bucket, "--on-conflict", "overwrite", endpoint_url=relay.url)
    a_conflict(mount, contents, relay)
    mount.wait()
    assert files(contents) == {"file": b"ours"}
    told = status_of(mount)
    assert told["uploads"]["overwritten"] == 1
    assert [event["outcome"] for event in told["conflicts"]] == ["overwritten"]


@pytest.mark.parametrize("decision", ["keep both", "overwrite", "discard"])
def test_a_held_conflict_waits_for_a_person(
    bucket: str, mount_factory: Make, relay: Relay, contents: S3Contents, decision: str
) -> None:
    mount = mount_factory(bucket, "--on-conflict", "hold", endpoint_url=relay.url)
    a_conflict(mount, contents, relay)
    wait_until(lambda: bool(parked_in(mount)), "it is held")
    assert mount.command("wait", str(mount.path), "--timeout", "5").returncode == 1
    assert files(contents) == {"file": b"theirs"}
    assert (mount.path / "file").read_bytes() == b"ours"
    assert "conflict after" in mount.command("status", str(mount.path)).stdout
    if decision == "discard":
        shown = mount.command("discard", str(mount.path), "file")
        assert shown.returncode == 2
        assert shown.stdout == "file\n"
        assert (mount.path / "file").read_bytes() == b"ours"
        done = mount.command("discard", str(mount.path), "file", "--yes")
    else:
        overwrite = ["--overwrite"] if decision == "overwrite" else []
        done = mount.command("retry", str(mount.path), str(mount.path / "file"), *overwrite)
    assert done.returncode == 0, done.stderr
    mount.wait()
    held = files(contents)
    if decision == "keep both":
        assert held.pop("file") == b"theirs"
        assert list(held.values()) == [b"ours"]
    else:
        wanted = b"ours" if decision == "overwrite" else b"theirs"
        assert held == {"file": wanted}
        wait_until(lambda: (mount.path / "file").read_bytes() == wanted, "the mount shows it")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (404, "NoSuchBucket"),
        (400, "KeyTooLongError"),
        (400, "InvalidStorageClass"),
        (400, "KMS.DisabledException"),
        (403, "QuotaExceeded"),
    ],
)
def test_what_s3_refuses_is_parked_shown_and_sent_when_a_person_asks(
    bucket: str, mount_factory: Make, relay: Relay, contents: S3Contents, status: int, code: str
) -> None:
    mount = mount_factory(bucket, endpoint_url=relay.url)
    relay.decide = refuse_puts(status, code, "refused")
    (mount.path / "refused").write_bytes(b"precious")
    (mount.path / "other").write_bytes(b"other")
    wait_until(lambda: bool(parked_in(mount)), "it is parked")
    [shown] = parked_in(mount)
    assert (shown["key"], shown["conflict"]) == ("refused", False)
    assert f"s3={status} {code}" in shown["error"]
    assert "request-id=relay" in shown["error"]
    assert shown["attempts"] <= 3
    assert (mount.path / "refused").read_bytes() == b"precious"
    text = mount.command("status", str(mount.path)).stdout
    assert "parked after" in text
    assert "s3mount retry" in text
    wait_until(lambda: "other" in contents.listing(), "the others go on")
    relay.decide = lambda request: None
    asked = mount.command("retry", str(mount.path), "refused")
    assert (asked.returncode, asked.stdout) == (0, "refused\n1 tried again now\n"), asked.stderr
    wait_until(lambda: pending_of(mount)["changes"] == 0, "it is sent")
    assert files(contents) == {"refused": b"precious", "other": b"other"}
    again = mount.command("retry", str(mount.path), "refused")
    assert again.returncode == 1
    assert "nothing at refused waits for another try" in again.stderr


def test_discard_gives_up_a_whole_folder(
    bucket: str, mount_factory: Make, contents: S3Contents
) -> None:
    # Nothing is on its way when it is given up.
    mount = mount_factory(bucket, "--upload-delay", "1h")
    (mount.path / "d").mkdir()
    (mount.path / "d/kept").write_bytes(b"stored")
    (mount.path / "d/moved").write_bytes(b"stored")
    mount.wait()
    (mount.path / "d/kept").write_bytes(b"lost")
    (mount.path / "d/new").write_bytes(b"lost")
    (mount.path / "d/moved").rename(mount.path / "moved")
    (mount.path / "else").write_bytes(b"else")
    done = mount.command("discard", str(mount.path), str(mount.path / "d"), "moved", "--yes")
    assert done.returncode == 0, done.stderr
    assert {"d/kept", "d/new", "d/moved", "moved"} <= set(done.stdout.split())
    assert "else" not in done.stdout.split()
    wait_until(
        lambda: sorted(os.listdir(mount.path / "d")) == ["kept", "moved"], "S3's state shows"
    )
    assert (mount.path / "d/kept").read_bytes() == b"stored"
    mount.wait()
    assert files(contents) == {"d/kept": b"stored", "d/moved": b"stored", "else": b"else"}


def test_fsync_s3_and_write_through(
    bucket: str, mount_factory: Make, relay: Relay, contents: S3Contents
) -> None:
    """They return when S3 has it; a refusal is their error, and the file stays pending."""
    mount = mount_factory(
        bucket, "--fsync", "s3", "--write-through", "--upload-delay", "1h", endpoint_url=relay.url
    )
    for size in (10, 9 * MIB):
        with (mount.path / "synced").open("wb") as file:
            file.write(b"x" * size)
            file.flush()
            os.fsync(file.fileno())
            assert contents.read("synced") == b"x" * size
            file.write(b"end")
        assert contents.read("synced") == b"x" * size + b"end"
    relay.decide = refuse_puts(403, "AccessDenied", "refused")
    descriptor = os.open(mount.path / "refused", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"precious")
    assert outcome(lambda: os.fsync(descriptor)) == "EIO"
    assert outcome(lambda: os.close(descriptor)) == "EIO"
    relay.decide = refuse_puts(500, "InternalError", "refused")
    assert (mount.path / "refused").read_bytes() == b"precious"
    relay.decide = lambda request: None
    mount.wait()
    assert contents.read("refused") == b"precious"


WRITER = """
import os, signal, sys
# A run in the background of a shell ignores SIGINT, and so would this.
signal.signal(signal.SIGINT, signal.default_int_handler)
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(descriptor, b"x" * 1000)
print("waiting", flush=True)
os.fsync(descriptor)
print("synced", flush=True)
"""


@contextlib.contextmanager
def a_waiting_program(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that writes a file and is in fsync, or about to be; it is gone afterwards."""
    program = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "waiting\n"
            yield program
        finally:
            program.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_waiting_fsync_can_be_interrupted(
    bucket: str, mount_factory: Make, relay: Relay, contents: S3Contents, number: int
) -> None:
    """A program that waits for S3 ends when it is told to; what it wrote is sent all the same."""
    mount = mount_factory(bucket, "--fsync", "s3", endpoint_url=relay.url)
    with relay.holding(*WRITING), a_waiting_program(mount.path / "file") as program:
        wait_until(lambda: bool(relay.requests("PUT", path_part="file")), "it is on its way")
        assert program.poll() is None
        program.send_signal(number)
        assert program.wait(20) != 0
        assert program.stdout is not None
        assert "synced" not in program.stdout.read()
    mount.wait()
    assert files(contents) == {"file": b"x" * 1000}


def test_a_stop_lets_go_who_waits_for_s3(bucket: str, mount_factory: Make, relay: Relay) -> None:
    """SIGTERM with a program in fsync that cannot be served: it is told so and the mount ends."""
    mount = mount_factory(bucket, "--fsync", "s3", "--drain-timeout", "1", endpoint_url=relay.url)
    with relay.holding(*WRITING):
        with a_waiting_program(mount.path / "file") as program:
            wait_until(lambda: bool(relay.requests("PUT", path_part="file")), "it is on its way")
            os.kill(mount.pid, signal.SIGTERM)
            assert program.wait(30) != 0
        wait_until(lambda: not mount.mounted, "it is unmounted")
        wait_until(lambda: "kept in" in mount.log, "it says what it leaves behind")
