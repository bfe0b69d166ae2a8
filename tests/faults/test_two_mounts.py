"""Two mounts write the same keys of one bucket at random: no version that anybody wrote is lost."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable

from tests.faults.load import held
from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import counter
from tests.mounting import Mount
from tests.servers import S3Server

KEYS = 200
WRITE_S = 8.0
WRITE_S_MAX = 60.0
"""On a machine that is busy with other things."""
WRITERS = ("left", "right")


class Writer:
    """Writes random files of one mount, each time what it read there and a line of its own."""

    def __init__(self, name: str, mount: Mount, began_s: float) -> None:
        self.written: list[tuple[str, str]] = []
        self.errors: list[OSError] = []
        self._name = name
        self._mount = mount
        self._began_s = began_s
        self._random = random.Random(name)
        self.thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        try:
            while not self._is_enough():
                self._write_one(f"file{self._random.randrange(KEYS)}")
                time.sleep(0.002)
        except OSError as error:
            self.errors.append(error)

    def _is_enough(self) -> bool:
        past_s = time.monotonic() - self._began_s
        return past_s > WRITE_S_MAX or (past_s > WRITE_S and len(self.written) > KEYS)

    def _write_one(self, name: str) -> None:
        """A line more: so that every version contains those that its writer knew of."""
        line = f"{self._name}{len(self.written)}\n"
        try:
            with (self._mount.path / name).open("r+") as file:
                text = file.read()
                file.seek(0)
                file.write(text + line)
        except OSError as error:
            # The other one replaced what was opened before it was read: the program is told.
            if error.errno != errno.ESTALE:
                raise
            return
        self.written.append((name, line))


def test_two_writers_lose_no_version(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Each line that was written stands under its name or under that of a conflict of it."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    for number in range(KEYS):
        contents.put(f"file{number}", b"begun\n")
    mounts = [mount_factory(bucket) for _ in WRITERS]
    began_s = time.monotonic()
    writers = [Writer(name, mount, began_s) for name, mount in zip(WRITERS, mounts, strict=True)]
    for writer in writers:
        writer.thread.start()
    for writer in writers:
        writer.thread.join()
    assert [writer.errors for writer in writers] == [[], []]
    for mount in mounts:
        mount.wait()
    there = {key: body.decode().splitlines(keepends=True) for key, body in held(contents).items()}
    lost = [
        (name, line)
        for writer in writers
        for name, line in writer.written
        if not any(line in lines for key, lines in there.items() if is_of(key, name))
    ]
    assert lost == []
    written = sum(len(writer.written) for writer in writers)
    conflicts = sum(counter(mount, "conflicts") for mount in mounts)
    assert conflicts > 0, f"{written} writes never met"
    assert len(there) > KEYS
    for lines in there.values():
        assert len(lines) == len(set(lines)), "nothing is there twice"


def is_of(key: str, name: str) -> bool:
    """Is ``key`` the file's own, or that of a conflict of it?"""
    return key == name or key.startswith(f"{name}.conflict-")
