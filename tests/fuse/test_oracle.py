"""A bucket's past through the mount against what its writer knows, at random times.

The oracle is made while writing: what is listed is never asked for it. ``make test-snapshots`` plays it
with 10,000 keys of 5 versions at 20 times.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from s3mount.manifest.times import format_time
from tests.fuse.pasts import store_time_ns
from tests.mounting import Mount
from tests.servers import S3Server

KEYS = int(os.environ.get("S3MOUNT_TEST_ORACLE_KEYS", "150"))
TIMES = int(os.environ.get("S3MOUNT_TEST_ORACLE_TIMES", "3"))
VERSIONS = 5
WRITERS = 8
READERS = 16
DELETED_SHARE = 0.2

pytestmark = [
    pytest.mark.each_server,
    pytest.mark.needs_s3,
    pytest.mark.timeout(300 + KEYS * TIMES // 50),
]

Make = Callable[..., Mount]
State = dict[str, bytes]
Write = tuple[str, bytes | None]


def names_of_keys(chance: random.Random) -> list[str]:
    """Keys as people have them: folders of all sizes, odd letters, some that are both file and folder."""
    keys = []
    for number in range(KEYS):
        kind = number % 10
        if kind < 4:
            keys.append(f"large/{number:05d}.bin")
        elif kind < 7:
            keys.append(f"{chance.randrange(40)}/{chance.randrange(5)}/{number}")
        elif kind == 7:
            keys.append(f"odd & ü/{number} +%~(é)")
        elif kind == 8:
            keys.append(f"alone/{number}/file")
        else:
            keys.append(
                f"both/{number // 20}" if number % 20 == 9 else f"both/{number // 20}/below"
            )
    return keys


def plan(chance: random.Random) -> list[Write]:
    """All writes in their order; ``None`` deletes."""
    writes: list[Write] = []
    for key in names_of_keys(chance):
        for version in range(VERSIONS):
            is_deletion = version > 0 and chance.random() < DELETED_SHARE
            body = f"{key} {version} ".encode() * chance.randrange(8)
            writes.append((key, None if is_deletion else body))
    chance.shuffle(writes)
    return writes


class Writers:
    """Some connections by which a bucket is written; a key is always written by the same one."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self._address = urlsplit(server.endpoint_url).netloc
        self._bucket = bucket
        self._signer = S3SigV4Auth(
            Credentials(server.access_key, server.secret_key), "s3", server.region
        )
        self._threads = ThreadPoolExecutor(WRITERS)
        self._connections = [
            http.client.HTTPConnection(self._address, timeout=60) for _ in range(WRITERS)
        ]

    def write(self, writes: Iterable[Write]) -> None:
        """Carry these out, in their order as far as one key is concerned; return when all are done."""
        shares: list[list[Write]] = [[] for _ in range(WRITERS)]
        for key, body in writes:
            shares[zlib.crc32(key.encode()) % WRITERS].append((key, body))
        list(self._threads.map(self._write_share, self._connections, shares))

    def _write_share(self, connection: http.client.HTTPConnection, share: list[Write]) -> None:
        for key, body in share:
            method = "DELETE" if body is None else "PUT"
            target = f"/{self._bucket}/{quote(key)}"
            headers = {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}
            request = AWSRequest(method, f"http://{self._address}{target}", headers, body or b"")
            self._signer.add_auth(request)
            connection.request(method, target, body or b"", dict(request.headers))
            answer = connection.getresponse()
            told = answer.read()
            assert answer.status in (200, 204), told

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._threads.shutdown()


def write_history(
    server: S3Server, bucket: str, chance: random.Random
) -> dict[str, dict[str, str]]:
    """Write everything, pausing at random places; for the time of each pause the tree that was there then."""
    writes = plan(chance)
    pauses = sorted(chance.sample(range(1, len(writes)), TIMES))
    client: Any = server.boto3_client()
    writers = Writers(server, bucket)
    state: State = {}
    oracle: dict[str, dict[str, str]] = {}
    begun = 0
    try:
        for pause in [*pauses, len(writes)]:
            writers.write(writes[begun:pause])
            for key, body in writes[begun:pause]:
                if body is None:
                    state.pop(key, None)
                else:
                    state[key] = body
            begun = pause
            at_ns = store_time_ns(client, bucket)
            while store_time_ns(client, bucket) <= at_ns:
                continue
            if pause < len(writes):
                oracle[format_time(at_ns)] = shown(state)
    finally:
        writers.close()
    return oracle


def shown(state: State) -> dict[str, str]:
    """The tree that a state is: folders, and files with size and SHA-256; a folder hides a file of its name."""
    tree = {}
    for key in state:
        parts = key.split("/")
        for depth in range(1, len(parts)):
            tree["/".join(parts[:depth])] = "folder"
    for key, body in state.items():
        if key not in tree:
            tree[key] = digest(body)
    return tree


def digest(body: bytes) -> str:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}"


def tree_of(top: Path) -> dict[str, str]:
    """The tree that a folder is, with sizes as stat tells them."""
    tree = {}
    files = []
    for folder, folders, names in os.walk(top, onerror=_fail):
        below = os.path.relpath(folder, top)
        prefix = "" if below == "." else f"{below}/"
        tree.update({f"{prefix}{name}": "folder" for name in folders})
        files += [f"{prefix}{name}" for name in names]

    def read(path: str) -> tuple[str, str]:
        body = (top / path).read_bytes()
        assert (top / path).stat().st_size == len(body)
        return path, digest(body)

    with ThreadPoolExecutor(READERS) as threads:
        tree.update(threads.map(read, files))
    return tree


def _fail(error: OSError) -> None:
    raise error


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    names = sorted(found.keys() | expected.keys())
    return [
        f"{name}: {found.get(name)} instead of {expected.get(name)}"
        for name in names
        if found.get(name) != expected.get(name)
    ]


def test_the_past_is_what_its_writer_knows(
    mount_factory: Make, s3_server: S3Server, versioned_bucket: str
) -> None:
    chance = random.Random(20261001)
    oracle = write_history(s3_server, versioned_bucket, chance)
    assert len(oracle) == TIMES
    live = mount_factory(versioned_bucket, "--snapshots")
    past = mount_factory(versioned_bucket, mounted=False)
    past.cache_dir = live.cache_dir
    for number, (moment, expected) in enumerate(oracle.items()):
        past.options = ["--at", moment]
        past.mount()
        assert differences(tree_of(past.path), expected) == [], moment
        past.unmount()
        if number % 4 == 0:
            found = tree_of(live.path / ".snapshots" / moment)
            assert differences(found, expected) == [], moment
    live.unmount()
