"""Reading ahead across files on real mounts: what programs get, and by how many requests."""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable

import pytest

from tests.fuse.mounts import counter
from tests.fuse.seeding import put_many
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Relay

pytestmark = pytest.mark.needs_s3
KIB = 1 << 10
BODY = os.urandom(4 * KIB)


def gets(relay: Relay, prefix: str) -> Counter[str]:
    """How often each object below ``prefix`` was asked for."""
    return Counter(each.path for each in relay.requests("GET", path_part=f"/{prefix}"))


@pytest.mark.parametrize(
    "command",
    ["tar cf - {top} | tar tf - | wc -l", "grep -rL nothing-has-this {top} | sort | wc -l"],
    ids=["tar", "grep"],
)
def test_a_tree_is_read_by_one_get_for_each_file(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server, command: str
) -> None:
    """Most files are on their way before they are opened; none is asked for twice, none by HEAD."""
    keys = [f"top/{folder}/{number:02}" for folder in "abcdef" for number in range(40)]
    put_many(s3_server, bucket, keys, BODY)
    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, endpoint_url=relay.url)
        relay.forget()
        done = subprocess.run(
            ["bash", "-c", command.format(top="top")],
            cwd=mount.path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) >= len(keys)
        asked = gets(relay, "top/")
        assert len([path for path in asked if not path.endswith("/")]) == len(keys)
        assert max(asked.values()) <= 2, "listings may come twice, files not"
        assert relay.requests("HEAD", path_part="/top/") == []
        assert counter(mount, "files_ahead_asked") >= len(keys) * 0.8
        assert counter(mount, "files_ahead_unused") == 0


def test_single_reads_are_followed_by_nothing(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Files opened in no order: next to nothing is fetched that is not read."""
    keys = [f"top/{number:04}" for number in range(600)]
    put_many(s3_server, bucket, keys, BODY)
    chosen = random.Random(3).sample(keys, 60)
    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, endpoint_url=relay.url)
        os.listdir(mount.path / "top")
        relay.forget()
        for key in chosen:
            assert (mount.path / key).read_bytes() == BODY
        assert len(gets(relay, "top/0")) <= 1.3 * len(chosen)


def test_a_small_file_costs_one_get_also_where_attributes_are_stored(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Its headers answer the lookup, its body the read."""
    mount = mount_factory(bucket)
    (mount.path / "top").mkdir()
    (mount.path / "top/file").write_bytes(BODY)
    (mount.path / "top/file").chmod(0o600)
    mount.wait()
    mount.close()
    with Relay(s3_server.endpoint_url) as relay:
        again = mount_factory(bucket, endpoint_url=relay.url)
        relay.forget()
        assert (again.path / "top/file").read_bytes() == BODY
        assert (again.path / "top/file").stat().st_mode & 0o777 == 0o600
        assert sum(gets(relay, "top/file").values()) == 1
        assert relay.requests("HEAD", path_part="/top/file") == []
