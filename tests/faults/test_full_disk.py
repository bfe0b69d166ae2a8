"""The disk below the spool or the cache is full: programs are told, what was accepted arrives, and it goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3mount.manifest.catalog import FILE, IMPLIED, ROOT, Listed
from s3mount.manifest.library import Library
from tests.faults.disks import Ballast, small_disk
from tests.faults.load import held
from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import pending_of
from tests.fuse.outcomes import outcome
from tests.fuse.pasts import Writer, contents
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import WRITING
from tests.servers.faulty import FaultyRelay

MIB = 1 << 20
DISK_MIB = 16

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
pytestmark = needs_root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    with small_disk(tmp_path / "disk", DISK_MIB) as path:
        yield path


def content_of(number: int) -> bytes:
    return random.Random(number).randbytes(number * 7919 % 300_000 + 1)


@pytest.fixture
def on_disk(
    bucket: str,
    disk: Path,
    relay: FaultyRelay,
    mount_factory: Callable[..., Mount],
    s3_server: S3Server,
) -> Iterator[tuple[Mount, S3Contents]]:
    """A mount whose state folder is on the small disk."""
    mount = mount_factory(bucket, endpoint_url=relay.url, mounted=False)
    mount.state_dir = disk / "state"
    mount.mount()
    yield mount, S3Contents(s3_server.boto3_client(), bucket)
    mount.close()


def fill(mount: Mount) -> dict[str, bytes]:
    """Write files until one is refused for want of room; what was accepted."""
    accepted: dict[str, bytes] = {}
    for number in range(1000):
        content = content_of(number)
        told = outcome(lambda n=number, c=content: (mount.path / f"f{n}").write_bytes(c))  # type: ignore[misc]
        if told != "done":
            assert told == "ENOSPC"
            return accepted
        accepted[f"f{number}"] = content
    raise AssertionError("the disk took everything")


def is_accepted_whole(contents: S3Contents, accepted: dict[str, bytes], refused: set[str]) -> bool:
    """Did all that was accepted arrive, and nothing else but what was refused half way?"""
    there = held(contents)
    return {name: there.get(name) for name in accepted} == accepted and (
        set(there) - set(accepted) <= refused
    )


def test_state_on_a_full_disk(
    on_disk: tuple[Mount, S3Contents], disk: Path, relay: FaultyRelay
) -> None:
    """Filled by what cannot be sent: ENOSPC; everything accepted is readable, and arrives later."""
    mount, contents = on_disk
    with relay.holding(*WRITING):
        accepted = fill(mount)
        assert len(accepted) > 20
        refused = {f"f{len(accepted)}"}
        for name, content in accepted.items():
            assert (mount.path / name).read_bytes() == content
    mount.wait()
    assert is_accepted_whole(contents, accepted, refused)
    (mount.path / "later").write_bytes(b"x" * 6 * MIB)
    mount.wait()
    assert contents.read("later") == b"x" * 6 * MIB


def test_state_on_a_full_disk_and_killed(
    on_disk: tuple[Mount, S3Contents], disk: Path, relay: FaultyRelay
) -> None:
    """Killed while it is full: the next start sends what was accepted, with no more room than before."""
    mount, contents = on_disk
    with relay.holding(*WRITING):
        accepted = fill(mount)
        mount.kill9()
    mount.mount()
    for name, content in accepted.items():
        assert (mount.path / name).read_bytes() == content
    mount.wait()
    assert is_accepted_whole(contents, accepted, {f"f{len(accepted)}"})


def test_not_a_byte_left(on_disk: tuple[Mount, S3Contents], disk: Path, relay: FaultyRelay) -> None:
    """Somebody else takes all the room while uploads are under way: no step of the mount dies of it."""
    mount, contents = on_disk
    ballast = Ballast(disk)
    wanted = {f"f{number}": content_of(number) for number in range(30)}
    with relay.holding(*WRITING):
        for name, content in wanted.items():
            (mount.path / name).write_bytes(content)
        descriptor = os.open(mount.path / "open", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"begun")
        ballast.take_all()
        os.write(descriptor, b"x" * MIB)
        assert outcome(lambda: os.fsync(descriptor)) == "ENOSPC"
        assert outcome((mount.path / "folder").mkdir) == "ENOSPC"
        assert outcome(lambda: (mount.path / "new").write_bytes(b"new")) == "ENOSPC"
        assert outcome(lambda: (mount.path / "link").symlink_to("f1")) == "ENOSPC"
        assert outcome(lambda: os.close(descriptor)) in ("ENOSPC", "done")
        assert sorted(name for name in os.listdir(mount.path) if name != "open") == sorted(wanted)
    wait_until(lambda: set(wanted) <= set(contents.listing()), "what was accepted is sent")
    for name, content in wanted.items():
        assert (mount.path / name).read_bytes() == content
    ballast.give_back()
    (mount.path / "folder").mkdir()
    (mount.path / "folder/later").write_bytes(b"later")
    mount.wait()
    assert pending_of(mount)["changes"] == 0
    there = held(contents)
    there.pop("open", None)
    assert there == wanted | {"folder/later": b"later"}


def test_what_is_read_needs_no_room(
    on_disk: tuple[Mount, S3Contents], disk: Path, relay: FaultyRelay
) -> None:
    """A file of which a part was changed is read to its end, and mapped, while the disk of its change is full."""
    mount, contents = on_disk
    old = random.Random(1).randbytes(5 * MIB)
    new = old[: 2 * MIB] + b"new" * 5000 + old[2 * MIB + 15000 :]
    contents.put("big", old)
    contents.put("mapped", old)
    ballast = Ballast(disk)
    with relay.holding(*WRITING):
        for name in ("big", "mapped"):
            with (mount.path / name).open("r+b") as file:
                file.seek(2 * MIB)
                file.write(b"new" * 5000)
                file.flush()
                os.fsync(file.fileno())
        ballast.take_all()
        assert (mount.path / "big").read_bytes() == new
        reading = """
import mmap, sys
with open(sys.argv[1]) as file:
    sys.stdout.buffer.write(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
"""
        told = subprocess.run(
            [sys.executable, "-c", reading, str(mount.path / "mapped")],
            stdout=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert told.returncode == 0, "a page that cannot be read is a SIGBUS"
        assert told.stdout == new
    ballast.give_back()
    mount.wait()
    assert contents.read("big") == contents.read("mapped") == new


def test_a_file_larger_than_the_disk_of_the_cache(
    bucket: str, disk: Path, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Four read it at once, in parts and as a whole: the disk is full again and again, the mount stays."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    wanted = random.Random(1).randbytes(2 * DISK_MIB * MIB + 4321)
    contents.put("large", wanted)
    mount = mount_factory(bucket, mounted=False)
    mount.cache_dir = disk / "cache"
    mount.mount()

    def read(number: int) -> bool:
        with (mount.path / "large").open("rb", buffering=0) as file:
            file.seek(number * DISK_MIB * MIB // 4)
            return file.readall() == wanted[number * DISK_MIB * MIB // 4 :]

    with ThreadPoolExecutor(4) as readers:
        assert all(readers.map(read, [0, 1, 2, 3] * 2))
    (mount.path / "new").write_bytes(b"new")
    mount.wait()
    assert contents.read("new") == b"new"
    mount.close()


def test_cache_on_a_full_disk(
    bucket: str, disk: Path, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Nothing can be kept of what is read: it is read all the same."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    wanted = {f"f{number}": content_of(number) for number in range(20)}
    wanted["large"] = random.Random(1).randbytes(20 * MIB)
    for name, content in wanted.items():
        contents.put(name, content)
    mount = mount_factory(bucket, mounted=False)
    mount.cache_dir = disk / "cache"
    mount.mount()
    ballast = Ballast(disk)
    ballast.take_all()
    for _ in range(2):
        for name, content in wanted.items():
            assert (mount.path / name).read_bytes() == content
    (mount.path / "new").write_bytes(b"new")
    mount.wait()
    assert contents.read("new") == b"new"
    ballast.give_back()
    for name, content in wanted.items():
        assert (mount.path / name).read_bytes() == content
    mount.close()


def test_a_look_into_the_past_with_the_cache_on_a_full_disk(
    versioned_bucket: str,
    disk: Path,
    mount_factory: Callable[..., Mount],
    s3_server: S3Server,
) -> None:
    """What is listed of the past needs no room on that disk."""
    writer = Writer(s3_server, versioned_bucket)
    for number in range(40):
        writer.put(f"d{number % 4}/{number}", b"x" * number)
    then = {f"d{number % 4}/{number}": b"x" * number for number in range(40)}
    moment = writer.moment()
    writer.delete("d1/1")
    mount = mount_factory(versioned_bucket, "--snapshots", mounted=False)
    mount.cache_dir = disk / "cache"
    mount.mount()
    past = mount.path / ".snapshots" / moment
    ballast = Ballast(disk)
    ballast.take_all()
    for _ in range(2):
        assert contents(past) == then
    assert sorted(os.listdir(past / "d1")) == sorted(str(n) for n in range(1, 40, 4))
    ballast.give_back()
    assert contents(past) == then
    mount.unmount()


def test_a_past_whose_disk_is_full_goes_on_without_it(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was listed before is still there, under its numbers; so is what comes then."""
    names = [f"file {number:05d}" for number in range(20_000)]
    ballast = Ballast(disk)
    library = Library(disk / "catalogs", 1 << 30)
    with library.of_past("bucket", 1, 10**18, 1) as held:
        catalog = held.catalog
        (top,) = catalog.add(ROOT, [Listed("bucket", IMPLIED)])
        numbers = catalog.add(top, [Listed(name, FILE, "v") for name in names[:100]])
        ballast.take_all()
        for start in range(100, len(names), 100):
            numbers += catalog.add(top, [Listed(name, FILE) for name in names[start : start + 100]])
        catalog.set_listed([top])
        catalog.hide([("a//b", "no path")])
        found = catalog.page(top, "", len(names) + 1)
        assert [(row.name, row.number) for row in found] == list(zip(names, numbers, strict=True))
        assert {row.version_id for row in found[:100]} == {"v"}
        assert (catalog.is_listed(top), catalog.unshown()) == (True, [("a//b", "no path")])
    assert caplog.text.count("what is looked at from now on is not kept") == 1
    ballast.give_back()
    with library.of_past("bucket", 1, 10**18, 1) as held:
        assert len(held.catalog.page(top, "", len(names))) < len(names)
        assert held.catalog.add(top, [Listed(names[0], FILE)]) == numbers[:1]


@pytest.fixture
def small_blocks(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB with blocks of 1 KiB, smaller than a page of memory, as mkfs makes so small ones."""
    image, path = tmp_path / "image", tmp_path / "ext4"
    path.mkdir()
    image.touch()
    os.truncate(image, 64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal", image], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop devices: {done.stderr}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


OPENING = """
import os, sys
from pathlib import Path
from s3mount.db import open_database
from s3mount.errors import LocalDiskError
folder, name, is_filled_before = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "before"

def fill():
    with open(folder / f"ballast-{name}", "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1024):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass

if is_filled_before:
    fill()
    os.truncate(folder / f"ballast-{name}", os.stat(folder / f"ballast-{name}").st_size - int(name))
try:
    database = open_database(folder / f"{name}.sqlite", ["CREATE TABLE a (b)"])
    fill()
    for number in range(5000):
        database.execute("INSERT INTO a VALUES (?)", (number,))
except Exception as error:
    print(type(error).__name__)
"""


def test_a_database_on_a_full_disk_is_an_error_and_no_end(small_blocks: Path) -> None:
    """Blocks smaller than a page: what SQLite maps has holes that the disk cannot fill (SIGBUS)."""
    for name, when in [
        ("0", "after"),
        *((str(room << 10), "before") for room in (0, 12, 24, 32, 40, 64)),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", OPENING, small_blocks, name, when],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (name, when, done.stderr)
        assert done.stdout in ("DiskFullError\n", "LocalDiskError\n", "OperationalError\n")
        (small_blocks / f"ballast-{name}").unlink()


@pytest.mark.parametrize("is_killed", [True, False])
def test_one_large_file_fills_the_disk_of_the_state(
    bucket: str,
    small_blocks: Path,
    relay: FaultyRelay,
    mount_factory: Callable[..., Mount],
    s3_server: S3Server,
    is_killed: bool,
) -> None:
    """It is sent from there, and so by the next start: what was sent is noted with the last of the room."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    mount = mount_factory(bucket, endpoint_url=relay.url, mounted=False)
    mount.state_dir = small_blocks / "state"
    mount.mount()
    ballast = Ballast(small_blocks)
    data = random.Random(1).randbytes(40 * MIB)
    with relay.holding(*WRITING):
        (mount.path / "large").write_bytes(data)
        ballast.take_all()
        if is_killed:
            mount.kill9()
    if is_killed:
        # What an orderly end, or another release, leaves.
        for left in mount.state_dir.rglob("*-shm"):
            left.unlink()
        ballast.take_all()
        mount.mount()
    mount.wait()
    assert contents.read("large") == data
    (mount.path / "later").write_bytes(b"later")
    mount.wait()
    mount.close()
