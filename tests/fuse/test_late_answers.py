"""The kernel takes answers in late: files are what was written since, whatever such an answer tells of them."""

from __future__ import annotations

import os
import threading

import pytest

from s3mount.daemon import protocol
from tests.fuse.mounts import QuickMount
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3
APPENDS = 80
LISTERS = 2


@pytest.mark.timeout(120)
def test_an_append_overwrites_nothing(
    bucket: str, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Linux gives an inode that it makes anew the size in the answer that makes it, and trusts that."""
    mount = QuickMount(s3_server, bucket, tmp_path_factory.mktemp("late"), [])
    mount.module = "tests.fuse.late_mount"
    mount.mount()
    try:
        assert appended(mount) == [b"%05d" % number for number in range(APPENDS)]
    finally:
        mount.close()


def appended(mount: QuickMount) -> list[bytes]:
    """The lines of a file that has got them one by one, in a folder that is listed and forgotten meanwhile."""
    folder = mount.path / "d"
    folder.mkdir()
    path = folder / "log"
    path.touch()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            with os.scandir(folder) as entries:
                list(entries)

    listers = [threading.Thread(target=look) for _ in range(LISTERS)]
    for lister in listers:
        lister.start()
    try:
        for number in range(APPENDS):
            with path.open("ab") as file:
                file.write(b"%05d\n" % number)
            with mount.connect() as control:
                control.ask(protocol.Refresh(("d",)), timeout_s=60)
    finally:
        ended.set()
        for lister in listers:
            lister.join()
    return path.read_bytes().splitlines()
