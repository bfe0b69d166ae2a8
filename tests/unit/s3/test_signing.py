from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import botocore.auth
import pytest
from botocore.auth import HmacV1Auth, S3ExpressAuth, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given
from hypothesis import strategies as st

from s3mount.s3.http.signing import (
    EMPTY_SHA256,
    SESSION_TOKEN,
    UNSIGNED_PAYLOAD,
    Anonymous,
    BotocoreSigner,
    Credentials,
    FastSigV4,
    canonical_query,
    encode_path,
)

BASE = "https://bucket.s3.eu-central-1.amazonaws.com"
NOW = datetime.datetime(2026, 11, 21, 1, 24, 1, tzinfo=datetime.UTC)

keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
words = st.text(st.characters(codec="utf-8"), max_size=30)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.strip)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@contextmanager
def at(moment: datetime.datetime) -> Iterator[None]:
    """botocore's clock stands still."""

    def now(remove_tzinfo: bool = True) -> datetime.datetime:
        return moment.replace(tzinfo=None) if remove_tzinfo else moment

    with mock.patch.object(botocore.auth, "get_current_datetime", now):
        yield


def by_botocore(
    credentials: Credentials,
    method: str,
    path: str,
    query: str,
    headers: dict[str, str],
    payload_hash: str,
    moment: datetime.datetime,
    kind: type[S3SigV4Auth] = S3SigV4Auth,
) -> dict[str, str]:
    """The headers that botocore's own S3 signer adds, or that for a session of S3 Express."""

    class Oracle(kind):  # type: ignore[misc,valid-type]
        def payload(self, request: AWSRequest) -> str:
            return payload_hash

    is_express = kind is S3ExpressAuth
    more = {"identity_cache": None} if is_express else {}
    service = "s3express" if is_express else "s3"

    url = f"{BASE}{path}?{query}" if query else f"{BASE}{path}"
    request = AWSRequest(method=method, url=url, headers=dict(headers))
    with at(moment):
        oracle = Oracle(BotocoreCredentials(*credentials), service, "eu-central-1", **more)
        oracle.add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]),
    key=keys,
    query=st.dictionaries(words.filter(bool), words, max_size=4),
    metadata=st.dictionaries(names, values, max_size=4),
    extra=st.dictionaries(
        st.sampled_from(["range", "if-match", "content-type", "content-md5", "cache-control"]),
        values,
        max_size=3,
    ),
    payload_hash=st.sampled_from([EMPTY_SHA256, UNSIGNED_PAYLOAD]),
    credentials=st.builds(Credentials, st.just("AKIDEXAMPLE"), secrets, st.none() | secrets),
    seconds=st.integers(0, 200_000_000),
)
def test_the_fast_path_signs_as_botocore_does(
    method: str,
    key: str,
    query: dict[str, str],
    metadata: dict[str, str],
    extra: dict[str, str],
    payload_hash: str,
    credentials: Credentials,
    seconds: int,
) -> None:
    moment = NOW + datetime.timedelta(seconds=seconds)
    headers = {"host": "bucket.s3.eu-central-1.amazonaws.com", **extra}
    headers |= {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    path, encoded = f"/{encode_path(key)}", canonical_query(query.items())
    expected = by_botocore(credentials, method, path, encoded, headers, payload_hash, moment)
    FastSigV4("eu-central-1").sign(
        credentials, method, path, encoded, headers, payload_hash, moment.timestamp()
    )
    assert headers["authorization"] == expected["authorization"]
    assert headers["x-amz-date"] == expected["x-amz-date"]
    assert headers.get("x-amz-security-token") == credentials.token


@pytest.mark.parametrize("note", ["Grüße à Äé 日", "x  y  \u00e0"])
def test_metadata_in_utf_8_are_signed_as_they_travel(note: str) -> None:
    """botocore signs text as UTF-8; ours has one character for each byte."""
    there = {"host": "bucket.s3.eu-central-1.amazonaws.com"}
    credentials = Credentials("AKIDEXAMPLE", "secret")
    expected = by_botocore(
        credentials, "PUT", "/k", "", {**there, "x-amz-meta-n": note}, UNSIGNED_PAYLOAD, NOW
    )["authorization"]
    sent = {**there, "x-amz-meta-n": note.encode().decode("latin-1")}
    fast = dict(sent)
    FastSigV4("eu-central-1").sign(
        credentials, "PUT", "/k", "", fast, UNSIGNED_PAYLOAD, NOW.timestamp()
    )
    assert fast["authorization"] == expected
    slow = dict(sent)
    with at(NOW):
        BotocoreSigner(S3SigV4Auth, BASE, "eu-central-1", "s3").sign(
            credentials, "PUT", "/k", "", slow, UNSIGNED_PAYLOAD, 0.0
        )
    assert slow["authorization"] == expected
    assert slow["x-amz-meta-n"] == sent["x-amz-meta-n"]


def test_a_new_day_and_new_credentials_need_a_new_key() -> None:
    signer = FastSigV4("eu-central-1")
    moments = [NOW, NOW, NOW + datetime.timedelta(days=1), NOW]
    for moment, secret in zip(moments, ["one", "two", "two", "one"], strict=True):
        credentials = Credentials("AKID", secret)
        headers = {"host": "bucket.s3.eu-central-1.amazonaws.com"}
        expected = by_botocore(credentials, "GET", "/k", "", headers, EMPTY_SHA256, moment)
        signer.sign(credentials, "GET", "/k", "", headers, EMPTY_SHA256, moment.timestamp())
        assert headers["authorization"] == expected["authorization"]


@given(key=keys)
def test_paths_are_encoded_as_botocore_encodes_them(key: str) -> None:
    from botocore.utils import percent_encode

    assert encode_path(key) == percent_encode(key, safe="/~")


def test_s3_express_requests_carry_the_sessions_token() -> None:
    signer = FastSigV4("eu-central-1", "s3express", token_header=SESSION_TOKEN)
    session = Credentials("AKID", "secret", "session")
    headers = {"host": "bucket.s3.eu-central-1.amazonaws.com", "range": "bytes=0-1"}
    expected = by_botocore(
        session, "GET", "/key", "partNumber=1", headers, EMPTY_SHA256, NOW, S3ExpressAuth
    )
    signer.sign(session, "GET", "/key", "partNumber=1", headers, EMPTY_SHA256, NOW.timestamp())
    assert headers["x-amz-s3session-token"] == "session"
    assert "x-amz-security-token" not in headers
    assert "/eu-central-1/s3express/aws4_request" in headers["authorization"]
    assert headers["authorization"] == expected["authorization"]


def test_asymmetric_signatures_come_from_botocore() -> None:
    auth_class = botocore.auth.AUTH_TYPE_MAPS["s3v4a"]
    signer = BotocoreSigner(auth_class, BASE, "*", "s3")
    headers = {"host": "bucket.s3.eu-central-1.amazonaws.com"}
    signer.sign(
        Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        "PUT",
        "/key",
        "",
        headers,
        UNSIGNED_PAYLOAD,
        0,
    )
    assert headers["authorization"].startswith("AWS4-ECDSA-P256-SHA256 Credential=AKIDEXAMPLE/")
    assert headers["x-amz-region-set"] == "*"
    assert headers["x-amz-content-sha256"] == UNSIGNED_PAYLOAD


def test_other_schemes_are_signed_by_their_signers() -> None:
    signer = BotocoreSigner(HmacV1Auth, BASE, "eu-central-1", "s3")
    headers = {"host": "bucket.s3.eu-central-1.amazonaws.com"}
    signer.sign(Credentials("AKID", "secret"), "GET", "/key", "", headers, EMPTY_SHA256, 0)
    assert headers["authorization"].startswith("AWS AKID:")


def test_signing_needs_credentials_and_anonymity_none() -> None:
    headers = {"host": "h"}
    Anonymous().sign(None, "GET", "/k", "", headers, EMPTY_SHA256, 0)
    assert headers == {"host": "h"}
    with pytest.raises(ValueError, match="credentials"):
        FastSigV4("r").sign(None, "GET", "/k", "", headers, EMPTY_SHA256, 0)
    with pytest.raises(ValueError, match="credentials"):
        BotocoreSigner(HmacV1Auth, BASE, "r", "s3").sign(
            None, "GET", "/k", "", headers, EMPTY_SHA256, 0
        )
