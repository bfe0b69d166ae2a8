"""Stores that do some things otherwise than S3: what is asked of them, and what is said of them."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.errors import PreconditionFailedError, RejectedError
from s3mount.refs import ByteRange, Capabilities, Condition, ObjectHeaders
from s3mount.s3.client import S3Store
from s3mount.s3.store import Store
from tests.contract.subjects import Body, set_credentials
from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.habits import Habit, HabitRelay

pytestmark = pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)

TRIAL = ".s3mount/probe-1-abc"
PLAIN = ObjectHeaders()
ABSENT = Condition(if_absent=True)
PART = 5 << 20


class Other:
    """A bucket on a store with some habits."""

    def __init__(self, relay: HabitRelay, bucket: str, server: S3Server) -> None:
        self.relay = relay
        self.bucket = bucket
        self.client = server.boto3_client()

    def run(self, body: Body) -> None:
        """Run ``body`` with a store of its own."""
        config = StoreConfig(
            bucket=self.bucket, endpoint_url=self.relay.url, region="us-east-1", path_style=True
        )

        async def main() -> None:
            async with S3Store(config) as store:
                await body(store)

        trio.run(main)

    def probe(self) -> Capabilities:
        """What a probe finds."""
        found: list[Capabilities] = []

        async def body(store: Store) -> None:
            await store.check_bucket()
            found.append(await store.probe(TRIAL))

        self.run(body)
        return found[0]

    def keys(self) -> list[str]:
        """All keys there are."""
        listed = self.client.list_objects_v2(Bucket=self.bucket)
        return [each["Key"] for each in listed.get("Contents", [])]


MakeOther = Callable[..., AbstractContextManager[Other]]


@pytest.fixture
def other(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> MakeOther:
    """``other(habit, ...)``: a context in which the test's bucket has these habits."""
    set_credentials(monkeypatch, s3_server)

    @contextmanager
    def make(*habits: Habit) -> Iterator[Other]:
        with HabitRelay(s3_server.endpoint_url, habits) as relay:
            yield Other(relay, bucket, s3_server)

    return make


WHAT_IS_FOUND: dict[Habit, dict[str, object]] = {
    Habit.NO_IF_MATCH: {"if_match": False, "unusable": ("COPY If-Match", "PUT If-Match")},
    Habit.COPY_NEVER_ABSENT: {"copy_condition": False, "unusable": ("COPY If-None-Match",)},
    Habit.NOT_ATOMIC: {"if_absent": True, "atomic": False},
    Habit.NO_CHECKSUMS_OF_COPIES: {"checksum": "crc64nvme", "copied_checksums": False},
    Habit.WRONG_CHECKSUMS_OF_RANGES: {"checksum": "crc64nvme", "copied_checksums": False},
    Habit.NOTHING_VERIFIED: {"checksum": None, "content_md5": False},
    Habit.BARE_MARKERS: {"markers": True, "marker_metadata": False},
    Habit.MARKERS_ARE_FILES: {"markers": False},
    Habit.NO_PART_COPIES: {"part_copies": False},
    Habit.NO_VERSION_LISTS: {"lists_versions": False},
}


@pytest.mark.parametrize("habit", WHAT_IS_FOUND, ids=lambda habit: habit.name)
def test_the_probe_finds_a_habit(other: MakeOther, habit: Habit) -> None:
    with other(habit) as store:
        found = store.probe()
        for name, value in WHAT_IS_FOUND[habit].items():
            assert getattr(found, name) == value, name
        assert store.keys() == []


@pytest.mark.parametrize("probed", [True, False])
@pytest.mark.parametrize("habit", [Habit.NO_IF_MATCH, Habit.COPY_NEVER_ABSENT])
def test_a_condition_that_is_of_no_use_is_not_sent(
    other: MakeOther, habit: Habit, probed: bool
) -> None:
    """Looked before instead: what holds is done, and what somebody else wrote meanwhile is not overwritten."""

    async def body(store: Store) -> None:
        if probed:
            await store.probe(TRIAL)
        made = await store.put("key", b"one", PLAIN, condition=ABSENT)
        again = await store.put("key", b"two", PLAIN, condition=Condition(if_match=made.etag))
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"three", PLAIN, condition=Condition(if_match=made.etag))
        source = (await store.head("key")).ref
        copied = await store.copy(source, "to", None, condition=ABSENT)
        with pytest.raises(PreconditionFailedError):
            await store.copy(source, "to", None, condition=ABSENT)
        await store.copy(source, "to", PLAIN, condition=Condition(if_match=copied.etag))
        with pytest.raises(PreconditionFailedError):
            await store.copy(source, "to", None, condition=Condition(if_match=made.etag))
        assert (await store.get("to"))[1] == b"two"
        assert again.etag == copied.etag

    with other(habit) as store:
        store.run(body)


def test_a_wrong_answer_of_the_past_is_not_held_against_an_honest_store(
    other: MakeOther,
) -> None:
    """Conditions that fail, before anything is known of the store, do not end their use."""

    async def body(store: Store) -> None:
        await store.put("key", b"one", PLAIN)
        for _ in range(2):
            with pytest.raises(PreconditionFailedError):
                await store.put("key", b"two", PLAIN, condition=ABSENT)
        assert isinstance(store, S3Store)
        assert not store.traits.unusable

    with other() as store:
        store.run(body)


@pytest.mark.parametrize("probed", [True, False])
def test_copied_parts_without_checksums(other: MakeOther, probed: bool) -> None:
    """The upload is created without, known by the probe or by the first one that is refused."""
    data = random.Random(1).randbytes(2 * PART)

    async def body(store: Store) -> None:
        if probed:
            await store.probe(TRIAL)
        await store.put("base", data, PLAIN)
        base = (await store.head("base")).ref
        for is_first in (True, False):
            upload_id = await store.create_multipart("key", PLAIN, has_copies=True)
            parts = [
                await store.upload_part_copy("key", upload_id, 1, base, ByteRange(0, PART)),
                await store.upload_part("key", upload_id, 2, b"the end"),
            ]
            if probed or not is_first:
                await store.complete_multipart("key", upload_id, parts)
                continue
            with pytest.raises(RejectedError) as refusal:
                await store.complete_multipart("key", upload_id, parts)
            assert refusal.value.code == "InvalidPart", "begin it again"
            await store.abort_multipart("key", upload_id)
        assert (await store.get("key", byte_range=ByteRange(PART, 7)))[1] == b"the end"

    with other(Habit.NO_CHECKSUMS_OF_COPIES) as store:
        store.run(body)


def test_a_copy_of_which_nothing_is_told_is_looked_at(other: MakeOther) -> None:
    """It counts when the key has the bytes, and what was to be stored with them."""

    async def body(store: Store) -> None:
        await store.put("key", b"one", PLAIN)
        source = (await store.head("key")).ref
        wanted = ObjectHeaders(metadata={"mode": "33188"})
        made = await store.copy(source, "key", wanted)
        told = await store.head("key")
        assert told.headers is not None
        assert (told.etag, told.headers.metadata) == (made.etag, wanted.metadata)

    with other(Habit.COPIES_UNTOLD) as store:
        store.run(body)


def test_nothing_that_is_tried_stays_where_nothing_can_be_removed(
    other: MakeOther,
) -> None:
    """One key tells whether anything can be removed; the next mounts write none."""
    with other(Habit.KEEPS_ALL) as store:
        found = store.probe()
        assert found.if_absent is True
        assert found.complete_condition is None
        assert "cannot be removed" in found.reason
        assert store.keys() == [f"{TRIAL}.first"]


def test_what_killed_trials_left_is_removed(other: MakeOther) -> None:
    """Below the key of one that is known to have ended at once; that of others by their age."""
    killed = ".s3mount/probe-7-def"

    async def again(store: Store) -> None:
        await store.probe(TRIAL, killed=killed)

    async def known(store: Store) -> None:
        await store.probe(TRIAL, known=Capabilities(if_match=True), killed=killed)

    with other() as store:
        for body in (again, known):
            for key in (f"{killed}.copy", ".s3mount/probe-8-123.copy", ".s3mount/probes"):
                store.client.put_object(Bucket=store.bucket, Key=key, Body=b"")
            store.run(body)
            assert store.keys() == [".s3mount/probe-8-123.copy", ".s3mount/probes"]


DATED = {
    None: True,
    Habit.DATED_WHEN_REPLACED: False,
    Habit.CUT_VERSION_LISTS: False,
    Habit.STUCK_VERSION_LISTS: False,
}


def test_how_versions_are_dated_is_tried(
    other: MakeOther, versioned_bucket: str, bucket: str
) -> None:
    """Two versions and a delete marker, some time after each other, which are removed again."""
    found: dict[Habit | None, bool | None] = {}
    for habit in DATED:
        with other(*([habit] if habit else [])) as store:
            store.bucket = versioned_bucket

            async def body(store: Store, habit: Habit | None = habit) -> None:
                found[habit] = await store.try_version_dates(TRIAL)

            store.run(body)
            left = store.client.list_object_versions(Bucket=versioned_bucket)
            assert not left.get("Versions")
            assert not left.get("DeleteMarkers")
    assert found == DATED


def test_a_store_that_lists_no_versions_shows_what_it_has(other: MakeOther) -> None:
    """Each key with the version "null", also in pages and by folders."""

    async def body(store: Store) -> None:
        for key in ("a", "b/1", "b/2", "c"):
            await store.put(key, b"", PLAIN)
        found: list[str] = []
        marker = None
        for _ in range(10):
            page = await store.list_versions_page("", delimiter="/", key_marker=marker, max_keys=1)
            found += [version.key for version in page.versions]
            found += page.prefixes
            marker = page.next_key_marker
            if marker is None:
                break
        assert found == ["a", "b/", "c"]
        page = await store.list_versions_page("b/")
        assert [(v.key, v.version_id, v.is_latest) for v in page.versions] == [
            ("b/1", "null", True),
            ("b/2", "null", True),
        ]

    with other(Habit.NO_VERSION_LISTS) as store:
        store.run(body)


def test_what_a_bucket_held_is_not_told_by_wrong_dates(
    other: MakeOther, versioned_bucket: str, bucket: str, tmp_path: Path, s3_server: S3Server
) -> None:
    """Dates that look as if they were those of other versions are tried; a manifest of then is refused."""

    def create(store: Other) -> tuple[int, str]:
        options = [
            "--at",
            "-1s",
            "--endpoint-url",
            store.relay.url,
            "-o",
            str(tmp_path / "made.csv"),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "s3mount", "manifest", "create", versioned_bucket, *options],
            env=s3_server.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    with other(Habit.DATED_WHEN_REPLACED) as store:
        client = dataclasses.replace(s3_server, endpoint_url=store.relay.url).boto3_client()
        for body in (b"1", b"2"):
            client.put_object(Bucket=versioned_bucket, Key="a", Body=body)
            time.sleep(1.1)
        code, said = create(store)
        assert (code, "under wrong dates" in said) == (1, True), said
        assert not (tmp_path / "made.csv").exists()
    with other() as store:
        assert create(store)[0] == 0
        assert "a" in (tmp_path / "made.csv").read_text()


def test_a_past_that_cannot_be_told_is_not_shown(
    other: MakeOther,
    versioned_bucket: str,
    bucket: str,
    mount_factory: Callable[..., Mount],
) -> None:
    """``.snapshots`` says why, as does the status; the live files are there."""
    with other(Habit.DATED_WHEN_REPLACED) as store:
        mount = mount_factory(versioned_bucket, "--snapshots", endpoint_url=store.relay.url)
        (mount.path / "a").write_bytes(b"1")
        wait_until(
            lambda: status_of(mount)["store_honours"].get("version_dates") is False,
            "the dates were tried",
        )
        with pytest.raises(OSError, match="not supported"):
            os.listdir(mount.path / ".snapshots" / "2026-01-01")
        assert "under wrong dates" in mount.log
        assert (mount.path / "a").read_bytes() == b"1"
        mount.wait()
        left = store.client.list_object_versions(Bucket=versioned_bucket)
        assert not [each["Key"] for each in left["Versions"] if "probe" in each["Key"]]
