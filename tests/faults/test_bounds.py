"""Bounds of what is pending: descriptors, memory, and the time of a start do not grow out of hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import psutil
import pytest

from s3mount.refs import Attributes
from s3mount.spool.journal.changes import ABSENT, Put
from s3mount.spool.spool import Spool
from tests.conftest import LONG
from tests.faults.conftest import Behind
from tests.faults.load import held
from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import pending_of, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import WRITING, Answer
from tests.servers.faulty import FaultyRelay

FILES = 600
PENDING = 20_000 if LONG else 8_000
PENDING_BYTES_MAX = 4096
"""What one pending file may take in memory."""
DESCRIPTORS_MAX = 100


def open_blobs(mount: Mount) -> int:
    """How many files of its state folder the mount's process has open."""
    folder = f"/proc/{mount.pid}/fd"
    found = 0
    for number in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found += "/blobs/" in os.readlink(f"{folder}/{number}")
    return found


def test_no_descriptor_outlives_its_use(behind: Behind, relay: FaultyRelay) -> None:
    """Pending, refused, sent: of all these files none is open that no program has open."""
    mount, contents = behind
    wanted = {f"file{number}": b"%d" % number * 100 for number in range(FILES)}
    relay.decide = lambda request: Answer(503, "SlowDown") if request.method == "PUT" else None
    for name, content in wanted.items():
        (mount.path / name).write_bytes(content)
    assert pending_of(mount)["changes"] >= FILES
    wait_until(lambda: open_blobs(mount) == 0, "the kernel lets go of what was closed")
    with (mount.path / "file1").open("r+b") as file:
        file.write(b"0")
        file.flush()
        os.fsync(file.fileno())
        assert open_blobs(mount) == 1
    wanted["file1"] = b"0" + wanted["file1"][1:]
    relay.decide = lambda request: None
    mount.wait()
    wait_until(lambda: open_blobs(mount) == 0, "none is open any more")
    assert held(contents) == wanted


def leave_behind(mount: Mount, count: int) -> None:
    """Put what an earlier mount might have left into the state folder of ``mount``, which is not mounted."""
    (state_dir,) = mount.state_dir.iterdir()
    spool = Spool.open(state_dir, size_bytes_max=1 << 40)
    changes = []
    for number in range(count):
        blob = spool.new_blob()
        spool.grew(blob.write(0, b"%d" % number))
        blob.release()
        attributes = Attributes(mode=0o100644, uid=0, gid=0, mtime_ns=1, ctime_ns=1, atime_ns=1)
        key = f"folder{number // 1000}/file{number}"
        changes.append(Put(key=key, attributes=attributes, blob_id=blob.id, expected=ABSENT))
    spool.record(changes)
    spool.close()


@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)
def test_a_start_with_many_pending_files(
    bucket: str, relay: FaultyRelay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """So many pending files: the mount answers, with few descriptors and little memory for each."""
    mount = mount_factory(bucket, endpoint_url=relay.url)
    empty_bytes = psutil.Process(mount.pid).memory_info().rss
    mount.unmount()
    leave_behind(mount, PENDING)
    with relay.holding(*WRITING):
        mount.mount()
        process = psutil.Process(mount.pid)
        assert pending_of(mount)["changes"] >= PENDING
        assert (mount.path / "folder7/file7321").read_bytes() == b"7321"
        assert len(os.listdir(mount.path / "folder3")) == 1000
        assert process.num_fds() < DESCRIPTORS_MAX
        assert process.memory_info().rss - empty_bytes < PENDING * PENDING_BYTES_MAX
        assert status_of(mount)["pending"]["bytes"] == sum(len(str(n)) for n in range(PENDING))
        mount.kill9()
