"""What a mount that is gone left behind: shown, copied out, sent without a mount, also after damage."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import pending_of, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Relay

pytestmark = pytest.mark.needs_s3
MIB = 1 << 20

Make = Callable[..., Mount]


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with Relay(s3_server.endpoint_url) as running:
        yield running


class Left:
    """A state folder that a killed mount left: what S3 had before, and what it is to have."""

    def __init__(self, mount: Mount, contents: S3Contents, relay: Relay) -> None:
        self.mount = mount
        self.contents = contents
        self.relay = relay
        root = mount.path
        (root / "stored").write_bytes(b"stored")
        (root / "moved").write_bytes(b"moved")
        (root / "big").write_bytes(random.Random(1).randbytes(18 * MIB))
        mount.wait()
        # Not held: what is held is handed on later, and would arrive after the kill.
        relay.stop()
        (root / "d").mkdir(mode=0o750)
        (root / "d/new").write_bytes(b"new")
        (root / "d/new").chmod(0o640)
        os.utime(root / "d/new", ns=(1_500_000_000_000_000_000, 1_600_000_000_123_456_789))
        (root / "d/link").symlink_to("new")
        (root / "large").write_bytes(random.Random(2).randbytes(10 * MIB))
        (root / "stored").write_bytes(b"changed")
        (root / "moved").rename(root / "elsewhere")
        with (root / "big").open("r+b") as file:
            file.write(b"HEAD")
        wait_until(lambda: pending_of(mount)["changes"] >= 8, "all of it is pending")
        mount.kill9()
        [self.folder] = mount.state_dir.iterdir()
        relay.start()
        self.wanted = {
            "stored": b"changed",
            "elsewhere": b"moved",
            "big": b"HEAD" + random.Random(1).randbytes(18 * MIB)[4:],
            "d/new": b"new",
            "d/link": b"new",
            "large": random.Random(2).randbytes(10 * MIB),
        }

    def held(self) -> dict[str, bytes]:
        """The bucket, without markers."""
        listed = self.contents.listing()
        return {key: self.contents.read(key) for key in listed if not key.endswith("/")}


@pytest.fixture
def left(bucket: str, mount_factory: Make, relay: Relay, s3_server: S3Server) -> Left:
    """What a mount left when it was killed."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    return Left(mount_factory(bucket, endpoint_url=relay.url), contents, relay)


def test_recover_shows_and_sends_what_a_killed_mount_left(left: Left) -> None:
    before = left.held()
    shown = left.mount.command("recover", str(left.folder), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for line in ("put d/new, 3 B", "delete moved", "copy elsewhere", "put large, 10.0 MiB"):
        assert f"  {line}\n" in shown.stdout
    assert left.held() == before, "it was only shown"
    done = left.mount.command("recover", str(left.mount.state_dir))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("everything is in S3\n")
    assert left.held() == left.wanted
    assert left.contents.metadata("d/new")["mode"] == str(0o100640)
    again = left.mount.command("recover", str(left.folder))
    assert (again.returncode, "nothing is pending" in again.stdout) == (0, True)
    left.mount.mount()
    assert (left.mount.path / "big").read_bytes() == left.wanted["big"]


def test_recover_can_be_killed_and_goes_on(left: Left) -> None:
    for _ in range(3):
        left.relay.hold("POST", "DELETE")
        left.relay.forget()
        with subprocess.Popen(
            left.mount._s3mount("recover", str(left.folder)),
            env=left.mount.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as recovering:
            wait_until(
                lambda: bool(left.relay.requests("PUT") or left.relay.requests("POST")), "it sends"
            )
            recovering.kill()
        left.relay.release()
    done = left.mount.command("recover", str(left.folder))
    assert done.returncode == 0, done.stderr
    assert left.held() == left.wanted


def test_recover_says_what_it_could_not_send_and_keeps_it(left: Left) -> None:
    left.relay.stop()
    done = left.mount.command("recover", str(left.folder), "--timeout", "2")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "kept in" in done.stderr
    left.relay.start()
    done = left.mount.command("recover", str(left.folder))
    assert done.returncode == 0, done.stderr
    assert left.held() == left.wanted


def test_recover_leaves_a_running_mount_alone(left: Left) -> None:
    left.mount.mount()
    done = left.mount.command("recover", str(left.mount.path))
    assert done.returncode == 1
    assert "is in use by a process that sends all this by itself" in done.stderr
    left.mount.wait()
    assert left.held() == left.wanted


def test_export_needs_neither_a_mount_nor_s3(left: Left, tmp_path: Path) -> None:
    left.relay.stop()
    target = tmp_path / "out"
    done = left.mount.command("export", str(left.folder), str(target))
    assert done.returncode == 1, "not all of it is a whole file"
    names = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert names == {"d", "d/new", "d/link", "large", "stored", "big.partial"}
    assert (target / "large").read_bytes() == left.wanted["large"]
    assert (target / "stored").read_bytes() == b"changed"
    assert os.readlink(target / "d/link") == "new"
    status = (target / "d/new").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 1_600_000_000_123_456_789)
    assert (target / "d").stat().st_mode & 0o777 == 0o750
    assert (target / "big.partial").read_bytes()[:4] == b"HEAD"
    assert "elsewhere: its bytes are in S3, under 'moved'" in done.stderr
    assert "moved: it is to be removed in S3" in done.stderr
    again = left.mount.command("export", str(left.folder), str(target))
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    left.relay.start()
    left.mount.mount()
    left.mount.wait()
    assert left.held() == left.wanted, "nothing was taken from it"


def test_export_from_a_mount_whose_server_is_away(
    bucket: str, mount_factory: Make, relay: Relay, tmp_path: Path
) -> None:
    mount = mount_factory(bucket, endpoint_url=relay.url)
    assert os.listdir(mount.path) == []
    relay.stop()
    (mount.path / "file").write_bytes(b"x" * 1000)
    done = mount.command("export", str(mount.path), str(tmp_path / "out"))
    assert (tmp_path / "out/file").read_bytes() == b"x" * 1000
    assert done.returncode == 0, done.stderr
    relay.start()
    mount.wait()


def test_discard_without_a_mount(left: Left) -> None:
    shown = left.mount.command("discard", str(left.folder), "d", "elsewhere")
    assert shown.returncode == 2
    done = left.mount.command("discard", str(left.folder), "d", "elsewhere", "--yes")
    assert done.returncode == 0, done.stderr
    assert {"d/", "d/new", "d/link", "elsewhere", "moved"} <= set(done.stdout.split())
    left.mount.mount()
    left.mount.wait()
    wanted = {key: left.wanted[key] for key in ("stored", "big", "large")}
    assert left.held() == {**wanted, "moved": b"moved"}


@pytest.mark.parametrize("first", ["mount", "recover", "export"])
def test_a_damaged_journal_is_set_aside_and_the_files_arrive(
    left: Left, tmp_path: Path, first: str
) -> None:
    (left.folder / "journal.sqlite").write_bytes(os.urandom(30_000))
    (left.folder / "journal.sqlite-wal").unlink(missing_ok=True)
    closed = {key: left.wanted[key] for key in ("stored", "big", "d/new", "d/link", "large")}
    if first == "export":
        left.mount.command("export", str(left.folder), str(tmp_path / "out"))
        assert (tmp_path / "out/large").read_bytes() == closed["large"]
        assert not (left.folder / "damaged").exists(), "it only looks"
    if first == "recover":
        shown = left.mount.command("recover", str(left.folder), "--dry-run")
        assert "the journal is damaged" in shown.stdout
        assert "known by its blob's label only" in shown.stdout
        done = left.mount.command("recover", str(left.folder))
        assert done.returncode == 0, done.stderr
        assert "damaged: the journal is damaged" in done.stderr
    left.mount.mount()
    left.mount.wait()
    held = left.held()
    # The rename was known from the journal alone: its old name has stayed.
    assert held.pop("moved") == b"moved"
    assert held == closed
    [damage] = status_of(left.mount)["damaged"]
    assert damage["why"].startswith("the journal is damaged")
    assert (Path(damage["folder"]) / "journal.sqlite").stat().st_size == 30_000
    text = left.mount.command("status", str(left.mount.path)).stdout
    assert f"set aside in {damage['folder']}" in text


def test_without_an_argument_recover_lists_what_is_kept(left: Left) -> None:
    left.mount.environment["S3MOUNT_STATE_DIR"] = str(left.mount.state_dir)
    done = left.mount.command("recover")
    assert done.returncode == 0, done.stderr
    assert f"{left.folder}: {left.mount.bucket}" in done.stdout
    assert "  put large, 10.0 MiB\n" in done.stdout
    by_mountpoint = left.mount.command("recover", str(left.mount.path), "--dry-run")
    assert by_mountpoint.stdout == done.stdout
