"""SSE-C: the commands with a key of the user's, on servers that encrypt with it."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from s3mount.config import MIB, StoreConfig
from s3mount.customer_key import CustomerKey
from s3mount.refs import ContentRef, ObjectHeaders
from s3mount.s3.client import S3Store
from tests.bulk.places import Places
from tests.servers.habits import Habit, HabitRelay

KEY, OTHER = bytes(range(32)), bytes(range(100, 132))
LARGE = os.urandom(6 << 20)
MASTER_URL = "https://s3.amazonaws.com"


def given(key: bytes) -> dict[str, Any]:
    """As boto3 wants it."""
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}


@pytest.fixture
def keys(places: Places) -> Places:
    """With two key files in the folder."""
    (places.folder / "key").write_bytes(KEY)
    (places.folder / "other").write_bytes(base64.b64encode(OTHER) + b"\n")
    (places.folder / "small").write_bytes(b"small")
    (places.folder / "large").write_bytes(LARGE)
    return places


def read(places: Places, name: str, key: bytes | None) -> bytes:
    """An object's bytes, by boto3."""
    more = {} if key is None else given(key)
    answer = places.client.get_object(Bucket=places.bucket, Key=name, **more)
    body = answer["Body"].read()
    assert (answer.get("SSECustomerAlgorithm") == "AES256") == (key is not None)
    assert isinstance(body, bytes)
    return body


K = ("--sse-c-key-file", "key")


def test_every_command_reads_and_writes_with_a_key(keys: Places) -> None:
    keys.run("cp", "small", "large", "{b}/d/", *K, "--part-size", "5M")
    assert read(keys, "d/small", KEY) == b"small"
    assert read(keys, "d/large", KEY) == LARGE
    keys.run("cp", "{b}/d/", "back", *K)
    assert (keys.folder / "back" / "large").read_bytes() == LARGE
    assert keys.run("cat", "{b}/d/small", *K).stdout == b"small"
    digest = hashlib.md5(LARGE).hexdigest()
    assert keys.lines("sum", "-a", "md5", "{b}/d/large", *K)[0].startswith(digest)
    assert keys.run("verify", "back", "{b}/d", *K).returncode == 0
    (keys.folder / "back" / "large").write_bytes(LARGE[:-1] + b"?")
    assert keys.run("verify", "back", "{b}/d", *K, status=1).returncode == 1
    keys.run("sync", "back", "{b}/d", "--checksum", *K)
    assert read(keys, "d/large", KEY) == LARGE[:-1] + b"?"
    keys.run("mv", "{b}/d/large", "{b}/e/large", *K)
    assert read(keys, "e/large", KEY) == LARGE[:-1] + b"?"
    keys.run("cp", "{b}/d/small", "{b}/e/small", *K)
    assert read(keys, "e/small", KEY) == b"small"
    assert keys.keys() == ["d/small", "e/large", "e/small"]
    keys.run("ls", "-l", "{b}/e/", *K)
    keys.run("du", "{b}/e/", *K)


def test_between_two_keys_and_to_none(keys: Places) -> None:
    keys.put("a", body=b"bytes", **given(KEY))
    keys.put("plain", body=b"open")
    keys.run("cp", "{b}/a", "{b}/b", "--src-sse-c-key-file", "key", "--sse-c-key-file", "other")
    assert read(keys, "b", OTHER) == b"bytes"
    keys.run("cp", "{b}/a", "{b}/c", "--src-sse-c-key-file", "key")
    assert read(keys, "c", None) == b"bytes"
    keys.run("cp", "{b}/plain", "{b}/d", *K)
    assert read(keys, "d", KEY) == b"open"
    keys.run("cp", "{b}/a", "{b}/a", "--src-sse-c-key-file", "key", "--sse-c-key-file", "other")
    assert read(keys, "a", OTHER) == b"bytes"
    keys.put("empty", body=b"", **given(KEY))
    keys.run("cp", "{b}/empty", "{b}/e", *K)
    assert read(keys, "e", KEY) == b""


def test_a_key_by_descriptor_by_variable_and_in_base64(
    keys: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.put("a", body=b"bytes", **given(KEY))
    keys.put("b", body=b"others", **given(OTHER))
    assert keys.run("cat", "{b}/a", "--sse-c-key-fd", "0", stdin=KEY).stdout == b"bytes"
    assert keys.run("cat", "{b}/b", "--sse-c-key-file", "other").stdout == b"others"
    monkeypatch.setenv("S3MOUNT_SSE_C_KEY", base64.b64encode(KEY).decode())
    assert keys.run("cat", "{b}/a").stdout == b"bytes"


def test_a_master_key_makes_the_keys_that_s3am_made(keys: Places) -> None:
    """SHA-256 of the master key and the URL by which s3am knew the object."""
    own = hashlib.sha256(KEY + f"{MASTER_URL}/{keys.bucket}/d/é x".encode()).digest()
    keys.put("d/é x", body=b"of s3am", **given(own))
    assert keys.run("cat", "{b}/d/é x", *K, "--sse-c-key-is-master").stdout == b"of s3am"
    keys.run("cp", "{b}/d/é x", "{b}/copy", *K, "--sse-c-key-is-master")
    own = hashlib.sha256(KEY + f"{MASTER_URL}/{keys.bucket}/copy".encode()).digest()
    assert read(keys, "copy", own) == b"of s3am"


@pytest.mark.parametrize(
    "words", [("cat", "{b}/a"), ("cp", "{b}/a", "got"), ("cp", "{b}/a", "{b}/c")]
)
def test_a_wrong_key_and_none_are_told_in_one_line(keys: Places, words: tuple[str, ...]) -> None:
    keys.put("a", body=b"bytes", **given(KEY))
    said = keys.error(*words, "--sse-c-key-file", "other", status=10)
    assert "is encrypted with another key than was given (SSE-C)" in said
    said = keys.error(*words, status=10)
    assert "is encrypted with a key (SSE-C); name it by --sse-c-key-file" in said
    assert keys.keys() == ["a"]
    assert not (keys.folder / "got").exists()


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_what_s3_copies_in_parts_alone_goes_between_two_keys(
    keys: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit of 5 GiB a thousand times lower."""
    monkeypatch.setattr("s3mount.s3.client.PART_BYTES_MAX", 5 * MIB)
    monkeypatch.setattr("s3mount.s3.client.COPY_PART_BYTES", 5 * MIB)
    for name, value in keys.server.environment().items():
        monkeypatch.setenv(name, value)
    keys.put("a", body=LARGE, **given(KEY))
    etag = keys.client.head_object(Bucket=keys.bucket, Key="a", **given(KEY))["ETag"].strip('"')
    config = StoreConfig(
        bucket=keys.bucket,
        endpoint_url=keys.server.endpoint_url,
        path_style=True,
        customer_key=CustomerKey(path=str(keys.folder / "other")),
        copy_source_key=CustomerKey(path=str(keys.folder / "key")),
    )

    async def main() -> None:
        async with S3Store(config) as store:
            source = ContentRef("a", etag, len(LARGE), None, keys.bucket)
            made = await store.copy(source, "b", ObjectHeaders())
            assert made.etag.endswith("-2")

    trio.run(main)
    assert read(keys, "b", OTHER) == LARGE


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_an_object_without_a_key_is_read_where_a_key_is_refused_for_it(keys: Places) -> None:
    """As AWS does."""
    keys.put("plain", body=b"open")
    keys.put("a", body=b"bytes", **given(KEY))
    with HabitRelay(keys.server.endpoint_url, [Habit.NO_NEEDLESS_KEYS]) as relay:

        def run(*words: str) -> bytes:
            return keys.run(*words, *K, endpoint_url=relay.url).stdout

        assert run("cat", "{b}/plain", "{b}/a") == b"openbytes"
        run("cp", "{b}/", "got")
        assert (keys.folder / "got" / "plain").read_bytes() == b"open"
        run("cp", "{b}/plain", "{b}/closed")
        assert read(keys, "closed", KEY) == b"open"


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_what_a_store_does_not_encrypt_is_no_success(keys: Places) -> None:
    with HabitRelay(keys.server.endpoint_url, [Habit.NO_CUSTOMER_KEYS]) as relay:
        for name in ("small", "large"):
            done = keys.run(
                "cp", name, "{b}/x", *K, "--part-size", "5M", endpoint_url=relay.url, status=10
            )
            assert b"does not encrypt with the key that was given" in done.stderr


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_no_key_is_seen_anywhere(keys: Places) -> None:
    """Not in what is printed, in records, in the notes of unfinished uploads."""
    keys.run("cp", "large", "{b}/x", *K, "--part-size", "5M", "--perf-log", "perf", "--json")
    keys.run("cp", "{b}/x", "{b}/y", *K, "--perf-log", "perf")
    told = keys.run("cp", "{b}/x", "{b}/y", "--dry-run", *K).stdout
    spelt = (KEY, base64.b64encode(KEY), KEY.hex().encode())
    files = [path for path in keys.folder.rglob("*") if path.is_file() and path.name != "key"]
    assert keys.folder / "perf" in files
    for data in (told, *(path.read_bytes() for path in files)):
        assert not any(each in data for each in spelt)


@pytest.mark.parametrize(
    ("endpoint_url", "words", "status", "said"),
    [
        ("http://s3.invalid", K, 2, "travels by https only"),
        (None, ("--sse-c-key-file", "small"), 10, "small holds no key for SSE-C"),
        (None, ("--sse-c-key-file", "absent"), 10, "cannot be read from"),
        (None, ("--sse-c-key-fd", "77"), 10, "cannot be read from descriptor 77"),
        (None, (*K, "--sse-c-key-fd", "0"), 2, "contradict each other"),
        (None, ("--sse-c-key-is-master",), 2, "there is no master key"),
        (None, (*K, "--sse", "AES256"), 2, "another encryption than by a key of yours"),
    ],
)
@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_what_is_no_key_is_refused_before_anything_is_sent(
    keys: Places, endpoint_url: str | None, words: tuple[str, ...], status: int, said: str
) -> None:
    done = keys.run("cp", "small", "{b}/x", *words, endpoint_url=endpoint_url, status=status)
    assert said in done.stderr.decode()
    assert keys.keys() == []


def test_a_manifest_of_encrypted_objects_is_verified_and_checked_out(
    versioned: Places, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(KEY)
    for body in (b"first", b"second"):
        versioned.put("d/a", body=body, **given(KEY))
    versioned.put("d/large", body=LARGE, **given(KEY))
    versioned.run("manifest", "create", "{b}/d/", "-o", "m.csv", *K)
    versioned.run("manifest", "verify", "m.csv", "--content", *K)
    versioned.run("checkout", "m.csv", "out", *K)
    found = {
        path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert found == {"a": b"second", "large": LARGE}
