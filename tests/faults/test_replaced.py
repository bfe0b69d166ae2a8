"""Files that somebody else replaces between the look at their name, their open() and their first read()."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable

import pytest

from tests.faults.conftest import Behind
from tests.fuse.bucket_contents import S3Contents
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Decision, Request
from tests.servers.faulty import FaultyRelay

pytestmark = pytest.mark.parametrize("s3_server", ["localstack", "ceph"], indirect=True)
FILES = 100


@pytest.fixture
def believing(
    bucket: str, relay: FaultyRelay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> Behind:
    """A mount that believes what it has listed for the whole test."""
    mount = mount_factory(bucket, "--metadata-ttl", "60", endpoint_url=relay.url)
    return mount, S3Contents(s3_server.boto3_client(), bucket)


class Replacer:
    """Puts something else under each key of a folder just before its first GET is answered."""

    def __init__(self, contents: S3Contents, folder: str) -> None:
        self.now: dict[str, bytes] = {}
        self._contents = contents
        self._folder = folder
        self._lock = threading.Lock()
        self._rng = random.Random(4)

    def __call__(self, request: Request) -> Decision:
        key = request.path.partition(f"/{self._folder}/")[2]
        with self._lock:
            is_first = request.method == "GET" and key not in self.now and bool(key)
            if is_first:
                self.replace(key)
        return None

    def replace(self, key: str) -> None:
        """Somebody else writes more or less than was there."""
        self.now[key] = self._rng.randbytes(self._rng.choice((1, 900, 70_000, 600_000)))
        self._contents.put(f"{self._folder}/{key}", self.now[key])


def filled(believing: Behind, folder: str) -> list[str]:
    """Names of a listed folder of files."""
    mount, contents = believing
    names = [f"f{number}" for number in range(FILES)]
    for name, size in zip(names, itertools.cycle((10, 5000, 300_000)), strict=False):
        contents.put(f"{folder}/{name}", b"b" * size)
    assert sorted(os.listdir(mount.path / folder)) == sorted(names)
    return names


def test_what_is_replaced_before_the_first_byte_is_read_as_it_is_now(
    believing: Behind, relay: FaultyRelay
) -> None:
    """The first GET of every file meets another object: each read() gives all of that one, none ESTALE."""
    mount, contents = believing
    names = filled(believing, "d")
    replacer = Replacer(contents, "d")
    relay.decide = replacer
    found = {name: (mount.path / "d" / name).read_bytes() for name in names}
    relay.decide = lambda request: None
    assert found == replacer.now


def test_what_is_replaced_after_the_open_is_read_as_it_was(believing: Behind) -> None:
    """Of each file one whole version is read, and never an error."""
    mount, contents = believing
    replacer = Replacer(contents, "d")
    for name in filled(believing, "d"):
        before = contents.read(f"d/{name}")
        with (mount.path / "d" / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            replacer.replace(name)
            assert file.read() == before
            assert size == len(before)
