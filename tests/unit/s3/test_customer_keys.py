"""Keys for SSE-C: where they are read from, and what a refusal means."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from s3mount.config import StoreConfig
from s3mount.customer_key import CustomerKey
from s3mount.errors import (
    AccessDeniedError,
    CustomerKeyError,
    EncryptionKeyError,
    RejectedError,
    StoreError,
    UsageError,
)
from s3mount.s3.http.customer_keys import CustomerKeys
from s3mount.s3.http.requests import Answer, Call

KEY = bytes(range(32))
PREFIX = "x-amz-server-side-encryption-customer-"
SOURCE = "x-amz-copy-source-server-side-encryption-customer-"


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "key").write_bytes(KEY)
    return str(tmp_path / "key")


def keys_of(
    base_url: str = "https://s3.amazonaws.com", region: str = "", **more: Any
) -> CustomerKeys:
    keys = CustomerKeys(StoreConfig(bucket="b", **more))
    keys.rebind(base_url, region)
    return keys


def sent(keys: CustomerKeys, call: Call) -> dict[str, str]:
    headers = {"x-amz-server-side-encryption": "AES256"}
    keys.put_into(call, headers)
    return headers


@pytest.mark.parametrize(
    "written", [KEY, base64.b64encode(KEY), b" " + base64.b64encode(KEY) + b"\r\n"]
)
def test_a_key_is_32_bytes_or_base64(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "key").write_bytes(written)
    assert CustomerKey(path=str(tmp_path / "key")).read() == KEY


@pytest.mark.parametrize(
    "written",
    [b"", KEY[:31], KEY + b"\n", b"?" * 44, base64.b64encode(KEY[:30]), KEY.hex().encode()],
)
def test_all_else_is_none_and_is_not_told(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "key").write_bytes(written)
    with pytest.raises(EncryptionKeyError) as caught:
        CustomerKey(path=str(tmp_path / "key")).read()
    assert f"and it has {len(written)} bytes" in str(caught.value)
    assert not written or written.decode("latin-1") not in str(caught.value)


def test_a_descriptor_of_a_file_is_read_as_often_as_needed(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        key = CustomerKey(descriptor=descriptor)
        assert key.read() == key.read() == KEY
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "kind", ["head", "get", "fetch", "put", "upload_part", "complete_multipart"]
)
def test_requests_with_a_key(path: str, kind: str) -> None:
    headers = sent(keys_of(customer_key=CustomerKey(path=path)), Call(kind, "PUT", "k"))
    assert headers == {
        f"{PREFIX}algorithm": "AES256",
        f"{PREFIX}key": base64.b64encode(KEY).decode(),
        f"{PREFIX}key-md5": base64.b64encode(hashlib.md5(KEY).digest()).decode(),
    }


@pytest.mark.parametrize("kind", ["list", "delete", "abort_multipart", "describe", "check_bucket"])
def test_requests_without(path: str, kind: str) -> None:
    headers = sent(keys_of(customer_key=CustomerKey(path=path)), Call(kind, "GET", "k"))
    assert not any(name.startswith(PREFIX) for name in headers)


@pytest.mark.parametrize(
    ("base_url", "region", "url"),
    [
        ("https://b.s3.amazonaws.com", "us-east-1", "https://s3.amazonaws.com"),
        ("https://b.s3.eu-west-1.amazonaws.com", "eu-west-1", "https://s3-eu-west-1.amazonaws.com"),
        ("https://ceph.example.org", "eu-west-1", "https://s3.amazonaws.com"),
    ],
)
def test_the_key_that_is_made_of_a_master_key(
    path: str, base_url: str, region: str, url: str
) -> None:
    """As s3am made it: SHA-256 of the master key and the object's URL, which is not encoded."""
    master = CustomerKey(path=path, is_master=True)
    keys = keys_of(base_url, region, customer_key=master)
    headers = sent(keys, Call("copy", "PUT", "d/\u00e9 x", source=("other", "s")))
    own = hashlib.sha256(KEY + f"{url}/b/d/\u00e9 x".encode()).digest()
    of_source = hashlib.sha256(KEY + f"{url}/other/s".encode()).digest()
    assert headers[f"{PREFIX}key"] == base64.b64encode(own).decode()
    assert headers[f"{SOURCE}key"] == base64.b64encode(of_source).decode()


def test_no_key_travels_in_the_open(path: str) -> None:
    key = CustomerKey(path=path)
    for url in ("http://127.0.0.1:1", "http://b.localhost:1", "http://[::1]:1", "https://x"):
        keys_of(url, customer_key=key)
    for url in ("http://10.0.0.1", "http://s3.example.org"):
        with pytest.raises(UsageError, match="by https only"):
            keys_of(url, copy_source_key=key)


def refusal(kind: type[StoreError], status: int, text: str = "") -> StoreError:
    return kind(text or "no", key="k", status=status, code="AccessDenied" if status == 403 else "")


def test_an_object_without_a_key_is_asked_for_without_and_remembered(path: str) -> None:
    keys = keys_of(customer_key=CustomerKey(path=path))
    call = Call("get", "GET", "k")
    sent(keys, call)
    assert keys.tries_otherwise(call, refusal(RejectedError, 400))
    assert f"{PREFIX}key" not in sent(keys, call)
    keys.check(call, Answer(200, {}, b""))
    assert f"{PREFIX}key" not in sent(keys, Call("head", "HEAD", "k"))
    assert f"{PREFIX}key" in sent(keys, Call("put", "PUT", "k"))
    copy = Call("copy", "PUT", "to", source=("b", "k"))
    assert f"{SOURCE}key" not in sent(keys, copy)
    # It has one meanwhile.
    call = Call("get", "GET", "k")
    sent(keys, call)
    assert keys.tries_otherwise(call, refusal(RejectedError, 400))
    assert f"{PREFIX}key" in sent(keys, call)


def test_another_key_than_the_objects(path: str) -> None:
    keys = keys_of(customer_key=CustomerKey(path=path))
    call = Call("head", "HEAD", "k")
    sent(keys, call)
    assert keys.tries_otherwise(call, refusal(AccessDeniedError, 403))
    sent(keys, call)
    with pytest.raises(CustomerKeyError, match="another key than was given"):
        keys.tries_otherwise(call, refusal(RejectedError, 400))


def test_a_denial_stays_a_denial(path: str) -> None:
    keys = keys_of(customer_key=CustomerKey(path=path))
    call = Call("head", "HEAD", "k")
    sent(keys, call)
    first = refusal(AccessDeniedError, 403)
    assert keys.tries_otherwise(call, first)
    sent(keys, call)
    with pytest.raises(AccessDeniedError) as caught:
        keys.tries_otherwise(call, refusal(AccessDeniedError, 403))
    assert caught.value is first


def test_without_a_key_only_what_is_about_keys_is_told_as_such() -> None:
    keys = keys_of()
    call = Call("get", "GET", "k")
    assert sent(keys, call) == {"x-amz-server-side-encryption": "AES256"}
    assert not keys.tries_otherwise(call, refusal(RejectedError, 400, "something else"))
    told = "The object was stored using a form of Server Side Encryption."
    with pytest.raises(CustomerKeyError, match="name it by --sse-c-key-file"):
        keys.tries_otherwise(call, refusal(RejectedError, 400, told))


def test_a_directory_bucket_takes_none(path: str) -> None:
    with pytest.raises(UsageError, match="directory buckets"):
        CustomerKeys(StoreConfig(bucket="b--use1-az1--x-s3", customer_key=CustomerKey(path=path)))
