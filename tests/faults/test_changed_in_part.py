"""Small files changed in part: somebody else replaces what they were based on, in a bucket without versions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Behind
from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import status_of
from tests.servers.faulty import FaultyRelay

pytestmark = pytest.mark.parametrize("s3_server", ["localstack", "ceph"], indirect=True)

SIZES = [10, 4096, 100_000, 1 << 20]
"""4,096 bytes end with a page: the kernel reads nothing before it appends."""
EDITED = 3


def append(path: Path, base: bytes) -> bytes:
    """``echo ours >>path``."""
    with path.open("ab") as file:
        file.write(b"ours\n")
    return base + b"ours\n"


def edit(path: Path, base: bytes) -> bytes:
    """Bytes in the middle, by a program that opens it for writing alone, as dd does."""
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"ours", EDITED)
    os.close(fd)
    return base[:EDITED] + b"ours" + base[EDITED + 4 :]


def cut(path: Path, base: bytes) -> bytes:
    """``truncate``."""
    os.truncate(path, len(base) - 1)
    return base[:-1]


@pytest.mark.parametrize("change", [append, edit, cut])
@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read"])
def test_both_versions_are_kept(
    behind: Behind, relay: FaultyRelay, change: Callable[[Path, bytes], bytes], is_read: bool
) -> None:
    """It is replaced after the change was closed, and before it is sent."""
    mount, contents = behind
    bases = {f"f{size}": os.urandom(size) for size in SIZES}
    for name, base in bases.items():
        contents.put(name, base)
    assert sorted(os.listdir(mount.path)) == sorted(bases)
    if is_read:
        assert {name: (mount.path / name).read_bytes() for name in bases} == bases
    with relay.holding("PUT"):
        ours = {name: change(mount.path / name, base) for name, base in bases.items()}
        for name in bases:
            contents.put(name, b"theirs")
    mount.wait()
    for name, content in ours.items():
        [kept] = [key for key in contents.listing() if key.startswith(f"{name}.conflict-")]
        assert contents.read(name) == b"theirs"
        assert contents.read(kept) == content
    assert status_of(mount)["pending"]["list"] == []


def test_an_append_costs_no_request_more(behind: Behind, relay: FaultyRelay) -> None:
    """What is not here is asked for once; what was just sent is here still."""
    mount, contents = behind
    wait_until(lambda: bool(status_of(mount)["store_honours"]), "the probe ends")
    bases = {f"f{size}": os.urandom(size) for size in SIZES}
    for name, base in bases.items():
        contents.put(name, base)
    assert sorted(os.listdir(mount.path)) == sorted(bases)
    # Tags and what else is kept are looked at before each: a HEAD and a GET.
    for expected in ({"GET": 2, "HEAD": 2, "PUT": 1}, {"GET": 1, "HEAD": 1, "PUT": 1}):
        relay.forget()
        for name, base in bases.items():
            bases[name] = append(mount.path / name, base)
        mount.wait()
        for name, base in bases.items():
            cost = Counter(each.method for each in relay.requests() if each.path.endswith(name))
            assert cost <= Counter(expected), f"an append to {name}"
            assert contents.read(name) == base
