"""Stores whose ETags are no MD5s, as with SSE-KMS: nothing is lost, sent twice, or taken for somebody else's."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from s3mount.spool.journal.salvage import JOURNAL
from tests.faults.load import MIB, bodies, change, held, make, paid_uploads, shown
from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import counter, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Fault, Request
from tests.servers.faulty import BadDays, Fate
from tests.servers.opaque import Kind, OpaqueRelay

pytestmark = pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)

PART = 5 * MIB
PARTS = 6


@pytest.fixture(params=[Kind.KMS, Kind.SILENT], ids=lambda kind: kind.name)
def opaque(request: pytest.FixtureRequest, s3_server: S3Server) -> Iterator[OpaqueRelay]:
    """A relay before the server behind which ETags are no MD5s."""
    with OpaqueRelay(s3_server.endpoint_url, request.param) as relay:
        yield relay


@pytest.fixture
def mount(bucket: str, opaque: OpaqueRelay, mount_factory: Callable[..., Mount]) -> Mount:
    """A mount on it, which knows by now what ETags are worth, and does not look what others do meanwhile."""
    mount = mount_factory(
        bucket, "--part-size", "5M", "--metadata-ttl", "300", endpoint_url=opaque.url
    )
    wait_until(lambda: bool(status_of(mount)["store_honours"]), "the probe ends")
    return mount


@pytest.fixture
def contents(bucket: str, s3_server: S3Server) -> S3Contents:
    """The bucket, seen without the relay."""
    return S3Contents(s3_server.boto3_client(), bucket)


def is_lost_at_times(request: Request) -> bool:
    """Is it about an object of the test's?"""
    return request.method in ("PUT", "POST", "DELETE") and ".s3mount" not in request.path


@pytest.mark.parametrize("fates", [(), (Fate.LOSE_ANSWER, Fate.TWICE)], ids=["calm", "lost"])
def test_a_life_without_md5s(
    mount: Mount, opaque: OpaqueRelay, contents: S3Contents, fates: tuple[Fate, ...]
) -> None:
    """Made, changed, moved, removed, also while answers are lost: all of it arrives, and no conflict is seen."""
    if fates:
        opaque.decide = BadDays(fates, share=0.3, seed=1, befalls=is_lost_at_times)
    wanted = make(mount.path, 7)
    mount.wait()
    wanted = change(mount.path, wanted)
    mount.wait()
    assert held(contents) == wanted
    assert status_of(mount)["conflicts"] == []
    assert bool(opaque.met) == bool(fates)
    opaque.decide = lambda request: None
    mount.remount(fresh_state=True, fresh_cache=True)
    assert shown(mount.path) == wanted
    assert not paid_uploads(contents)


def test_who_wrote_first_is_seen_by_etags_of_any_kind(mount: Mount, contents: S3Contents) -> None:
    """Theirs keeps the name, ours is beside it, also where ours was a small change; a deletion leaves theirs."""
    for name in ("small", "gone"):
        (mount.path / name).write_bytes(b"ours " + name.encode())
    large = random.Random(1).randbytes(2 * PART + 1)
    (mount.path / "large").write_bytes(large)
    mount.wait()
    for name in ("small", "gone", "large"):
        contents.put(name, b"theirs")
    (mount.path / "small").write_bytes(b"ours again")
    with (mount.path / "large").open("r+b") as file:
        file.write(b"changed")
    (mount.path / "gone").unlink()
    mount.wait()
    now = held(contents)
    assert {now[name] for name in ("small", "gone", "large")} == {b"theirs"}
    kept = sorted(name for name in now if ".conflict-" in name)
    assert [name.split(".")[0] for name in kept] == ["large", "small"]
    assert now[kept[1]] == b"ours again"
    assert now[kept[0]] == b"changed" + large[7:], "the cache has what only theirs replaced"
    assert len(status_of(mount)["conflicts"]) == 3


def test_what_s3_has_is_known_by_its_bytes_alone(
    mount: Mount, opaque: OpaqueRelay, contents: S3Contents, tmp_path: Path
) -> None:
    """Written again, what the cache has is copied in S3; without it no ETag proves anything, and it is sent."""
    content = random.Random(2).randbytes(2 * PART + 5)
    (tmp_path / "local").write_bytes(content)
    shutil.copyfile(tmp_path / "local", mount.path / "file")
    mount.wait()
    opaque.forget()
    shutil.copyfile(tmp_path / "local", mount.path / "file")
    # A copy of a file that is just replaced would be refused, and the file be sent.
    mount.wait()
    shutil.copyfile(tmp_path / "local", mount.path / "other")
    mount.wait()
    assert sum(request.length for request in opaque.requests("PUT")) < MIB
    assert counter(mount, "saved_bytes") == 2 * len(content)
    mount.remount(fresh_cache=True)
    assert (mount.path / "file").read_bytes() == content
    other = content[:-1] + bytes([content[-1] ^ 1])
    (mount.path / "other").write_bytes(other)
    mount.wait()
    assert contents.read("other") == other
    assert contents.read("file") == content


def test_a_killed_upload_goes_on(
    mount: Mount, opaque: OpaqueRelay, contents: S3Contents, tmp_path: Path
) -> None:
    """What was confirmed is not sent again; what arrived unheard neither, where its checksum is told."""

    def is_part(request: Request) -> bool:
        is_trial = "/.s3mount/" in request.path
        return request.method == "PUT" and "partNumber=" in request.query and not is_trial

    seen: list[Request] = []

    def decide(request: Request) -> Fault | Fate | None:
        if not is_part(request):
            return None
        seen.append(request)
        return None if len(seen) <= PARTS // 2 else Fate.SWALLOW_ANSWER

    content = random.Random(3).randbytes(PARTS * PART)
    opaque.decide = decide
    (mount.path / "large").write_bytes(content)
    wait_until(lambda: len(parts_in(contents)) == PARTS, "all parts are in S3")
    wait_until(lambda: opaque.met[Fate.SWALLOW_ANSWER] == PARTS - PARTS // 2, "half unheard")
    mount.kill9()
    heard = parts_noted(mount, tmp_path / "journal")
    assert 0 < heard <= PARTS // 2
    opaque.decide = lambda request: None
    opaque.forget()
    mount.mount()
    mount.wait()
    again = [request for request in opaque.requests("PUT") if is_part(request)]
    told = "ChecksumCRC64NVME" if opaque.kind is Kind.KMS else ""
    assert len(again) == (0 if told else PARTS - heard)
    assert contents.read("large") == content
    assert os.listdir(mount.path) == ["large"]
    assert not paid_uploads(contents)


def parts_noted(mount: Mount, copy: Path) -> int:
    """How many parts a mount that was killed knew to be in S3. Its journal is read in a ``copy``."""
    (journal,) = mount.state_dir.rglob(JOURNAL)
    shutil.copytree(journal.parent, copy, ignore=lambda folder, names: {"blobs"} & {*names})
    with closing(sqlite3.connect(copy / JOURNAL)) as database:
        (found,) = database.execute("SELECT count(*) FROM part").fetchone()
    return int(found)


def parts_in(contents: S3Contents) -> set[int]:
    """The numbers of the parts that S3 has of the file that is being sent."""
    client, bucket = contents.client, contents.bucket
    numbers = set()
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        parts = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        numbers |= {part["PartNumber"] for part in parts.get("Parts", [])}
    return numbers


def test_reading_believes_bytes_that_come_alike(
    bucket: str, opaque: OpaqueRelay, contents: S3Contents, mount_factory: Callable[..., Mount]
) -> None:
    """Also where nothing was written, and so nothing learned of ETags."""
    wanted = {name: body for name, body in bodies(9).items() if len(body) < MIB}
    for name, body in wanted.items():
        contents.put(name, body)
    mount = mount_factory(bucket, "--read-only", endpoint_url=opaque.url)
    assert shown(mount.path) == wanted
