"""A server that lets some requests hang for ever: everything arrives, and nothing waits for ever."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import counter
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Decision, Fault, Relay, Request

FILES = 1000
SHARE = 0.02
SEED = 20261121
KINDS = (Fault.HANG, Fault.HANG_AFTER, Fault.HANG_INSIDE)


class Hanging:
    """Decides by a seed which requests never get their answer; never two in a row of one object.

    A request that hangs again and again is a server that is down, which other tests try.
    """

    def __init__(self) -> None:
        self._random = random.Random(SEED)
        self._lock = threading.Lock()
        self._hung: set[tuple[str, str]] = set()

    def __call__(self, request: Request) -> Decision:
        """What befalls ``request``."""
        with self._lock:
            what = (request.method, request.path + request.query)
            if what in self._hung or self._random.random() >= SHARE:
                return None
            self._hung.add(what)
            return self._random.choice(KINDS)


def content_of(number: int) -> bytes:
    """The bytes of file ``number``: 0 to 20 KiB, none like another."""
    return random.Random(number).randbytes(number * 7919 % 20_000) + b"%d" % number


def write_all(root: Path) -> None:
    """Make all files, in folders of a hundred."""
    for number in range(FILES):
        folder = root / str(number // 100)
        folder.mkdir(exist_ok=True)
        (folder / f"file{number}").write_bytes(content_of(number))


def read_all(root: Path) -> list[int]:
    """Read all files, eight at a time; the numbers of those that are not right."""

    def is_wrong(number: int) -> bool:
        return (root / str(number // 100) / f"file{number}").read_bytes() != content_of(number)

    with ThreadPoolExecutor(8) as readers:
        wrong = readers.map(is_wrong, range(FILES))
        return [number for number, bad in enumerate(wrong) if bad]


@pytest.mark.timeout(300)
def test_a_thousand_files_with_requests_that_hang(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Written and read back through a server on which 2% of all requests hang; each ends at its deadline."""
    with Relay(s3_server.endpoint_url) as relay:
        relay.decide = Hanging()
        mount = mount_factory(bucket, endpoint_url=relay.url)
        write_all(mount.path)
        mount.wait(timeout_s=120)
        overdue = counter(mount, "overdue")
        assert counter(mount, "late") == 0
        contents = S3Contents(s3_server.boto3_client(), bucket)
        stored = [key for key in contents.listing() if not key.endswith("/")]
        assert len(stored) == FILES
        mount.remount(fresh_state=True, fresh_cache=True)
        assert read_all(mount.path) == []
        overdue += counter(mount, "overdue")
        assert counter(mount, "late") == 0
        hung = len(relay.faulted())
        assert hung >= FILES * SHARE, "too few requests hung to prove anything"
        # Prefetches that nobody waits for and connections closed with a mount may end unseen.
        assert overdue >= hung / 2
