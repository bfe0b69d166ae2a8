from __future__ import annotations

import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import RejectedError, ServerFaultError
from s3mount.refs import ObjectHeaders
from s3mount.s3.headers import (
    bare_etag,
    check_headers,
    check_key,
    from_http,
    http_date_ns,
    is_md5_etag,
    iso_date_ns,
    object_info,
    same_when_stored,
    to_http,
)

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
octets = st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")
values = st.text(octets, max_size=40).map(lambda text: text.strip(" "))
optional = st.none() | values.filter(bool)
headers = st.builds(
    ObjectHeaders,
    metadata=st.dictionaries(names, values, max_size=5),
    content_type=optional,
    content_encoding=optional,
    content_language=optional,
    content_disposition=optional,
    cache_control=optional,
    expires=optional,
    storage_class=optional,
)


@given(headers=headers)
def test_headers_survive_the_way_through_http(headers: ObjectHeaders) -> None:
    check_headers(headers, "key")
    back = from_http(to_http(headers))
    assert same_when_stored(back, headers)
    if headers.content_type != "binary/octet-stream" and headers.storage_class != "STANDARD":
        assert back == headers


def test_stores_may_turn_underscores_into_hyphens() -> None:
    sent = ObjectHeaders(metadata={"a_b": "1"})
    assert same_when_stored(ObjectHeaders(metadata={"a-b": "1"}), sent)
    assert not same_when_stored(ObjectHeaders(metadata={"a-b": "2"}), sent)
    assert not same_when_stored(ObjectHeaders(), sent)


@given(seconds=st.integers(0, 4_000_000_000))
def test_dates(seconds: int) -> None:
    assert http_date_ns(email.utils.formatdate(seconds, usegmt=True)) == seconds * 10**9
    assert http_date_ns(email.utils.formatdate(seconds)) == seconds * 10**9
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    assert iso_date_ns(f"{stamp}Z") == seconds * 10**9
    assert iso_date_ns(f"{stamp}.123Z") == seconds * 10**9 + 123_000_000
    assert iso_date_ns(f"{stamp}.123456789Z") == seconds * 10**9 + 123_456_789


@pytest.mark.parametrize("value", ["", "soon", "Sat, 21 Foo 2026 01:24:01 GMT", "x" * 29])
def test_dates_that_are_none_read_as_zero(value: str) -> None:
    assert http_date_ns(value) == 0
    with pytest.raises(ServerFaultError):
        iso_date_ns(value)


def test_entity_tags() -> None:
    assert bare_etag('"abc"') == "abc"
    assert bare_etag("abc") == "abc"
    assert bare_etag('"') == '"'
    assert bare_etag('W/"abc"') == "abc"


@pytest.mark.parametrize("count", ["\u00b2", "-1", "9" * 5000, "two"])
def test_a_number_of_tags_that_is_none_is_not_told(count: str) -> None:
    answer = {"etag": '"abc"', "x-amz-tagging-count": count}
    assert object_info("key", answer, 5).tag_count is None
    assert is_md5_etag("d41d8cd98f00b204e9800998ecf8427e")
    assert not is_md5_etag("d41d8cd98f00b204e9800998ecf8427e-2")
    assert not is_md5_etag("D41D8CD98F00B204E9800998ECF8427E")


@pytest.mark.parametrize("key", ["k" * 1024, "ü" * 512, "\x01", "a//b", "/", " "])
def test_keys_that_s3_can_hold(key: str) -> None:
    check_key(key)


@pytest.mark.parametrize("key", ["", "k" * 1025, "ü" * 513, "\ud800"])
def test_keys_that_s3_cannot_hold(key: str) -> None:
    with pytest.raises(RejectedError):
        check_key(key)


def test_no_header_can_smuggle_another() -> None:
    for bad in ("a\r\nx-amz-acl: public-read", "a\nb", "a\x00b", " a", "a ", "\x7f"):
        for headers in (ObjectHeaders(metadata={"n": bad}), ObjectHeaders(content_type=bad)):
            with pytest.raises(RejectedError):
                check_headers(headers, "key")
