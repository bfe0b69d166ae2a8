"""What is sent with a write so that what is stored with the object stays, and what a bucket's policy demands."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import pytest
import trio

from s3mount.errors import AccessDeniedError, StoreError
from s3mount.refs import ContentRef, ObjectHeaders
from s3mount.s3.calls.describing import granting, tag_text
from s3mount.s3.documents import parse_xml
from s3mount.s3.headers import from_http, to_http
from tests.unit.s3.fault_server import Behaviour, Exchange, behave, faulty_store, md5

P = ParamSpec("P")
SSE = "x-amz-server-side-encryption"
KMS = {
    SSE: "aws:kms",
    f"{SSE}-aws-kms-key-id": "arn:aws:kms:eu-central-1:1:key/2",
    f"{SSE}-bucket-key-enabled": "true",
}


def in_trio(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        trio.run(functools.partial(test, *args, **kwargs))

    return run


def makes_an_object(exchange: Exchange) -> bool:
    query = exchange.target.partition("?")[2]
    if exchange.method == "POST":
        return query.startswith("uploads")
    return exchange.method == "PUT" and not query


def refusing(is_refused: Callable[[Exchange], bool], status: int = 403) -> Behaviour:
    """A server that refuses some of what makes an object, as a bucket's policy does."""

    async def meet(exchange: Exchange) -> None:
        if makes_an_object(exchange) and is_refused(exchange):
            await exchange.error(status, "AccessDenied" if status == 403 else "InvalidRequest")
        elif "x-amz-copy-source" in exchange.headers:
            exchange.server.objects[exchange.key] = b"x"
            document = f"<CopyObjectResult><ETag>{md5(b'x')}</ETag></CopyObjectResult>"
            await exchange.answer(200, document.encode())
        elif "list-type" in exchange.target:
            await exchange.answer(
                200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            )
        elif "uploadId" in exchange.target:
            await exchange.error(404, "NoSuchUpload")
        elif exchange.method == "POST":
            await exchange.answer(
                200,
                b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
            )
        else:
            await behave(exchange)

    return meet


@in_trio
async def test_whatever_makes_an_object_carries_what_the_policy_demands() -> None:
    """PUT, COPY, multipart uploads and the probe; what an object has itself goes before."""
    async with faulty_store(
        new_objects=ObjectHeaders(
            encryption="aws:kms",
            kms_key_id="arn:mine",
            acl={"x-amz-acl": "bucket-owner-full-control"},
        )
    ) as (server, store):
        server.usually = refusing(lambda e: SSE not in e.headers or "x-amz-acl" not in e.headers)
        await store.probe("probe")
        made = await store.put("key", b"x", ObjectHeaders())
        source = ContentRef("key", made.etag, 1)
        await store.copy(source, "copy", ObjectHeaders())
        await store.copy(source, "key2", None)
        await store.create_multipart("big", ObjectHeaders())
        makers = [exchange for exchange in server.seen if makes_an_object(exchange)]
        assert {"probe.copy", "probe.tags", "key", "copy", "key2", "big"} <= {e.key for e in makers}
        assert {e.headers[f"{SSE}-aws-kms-key-id"] for e in makers} == {"arn:mine"}
        assert not [e for e in server.seen if SSE in e.headers and not makes_an_object(e)]
        await store.put("key", b"x", from_http(KMS))
        assert {name: server.seen[-1].headers[name] for name in KMS} == KMS


@pytest.mark.parametrize("what", ["tagging", "grant-read", "object-lock", "server-side-encryption"])
@pytest.mark.parametrize("status", [400, 403])
@in_trio
async def test_what_is_refused_is_left_out_and_said_once(
    what: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    headers = ObjectHeaders(
        metadata={"author": "ann"},
        tags="a=1",
        acl={"x-amz-grant-read": 'uri="u"'},
        lock_mode="GOVERNANCE",
        lock_until="2099-01-01T00:00:00Z",
        legal_hold="ON",
        encryption="AES256",
    )
    wanted = to_http(headers)
    refused = [name for name in wanted if what in name]
    async with faulty_store() as (server, store):
        server.usually = refusing(lambda e: any(name in e.headers for name in refused), status)
        made = await store.put("key", b"x", headers)
        sent = [server.seen[-1].headers]
        await store.put("key", b"y", headers)
        await store.create_multipart("big", headers)
        sent.append(server.seen[-1].headers)
        await store.copy(ContentRef("key", made.etag, 1, "v"), "copy", headers)
        sent.append(server.seen[-1].headers)
        for each in sent:
            assert {name for name in wanted if name in each} == wanted.keys() - set(refused)
        warnings = [r for r in caplog.records if r.levelname == "WARNING"]
        assert len(warnings) == 1
        assert "cannot be kept" in warnings[0].getMessage()
        caplog.clear()


@in_trio
async def test_a_refusal_of_all_is_one() -> None:
    async with faulty_store() as (server, store):
        server.usually = refusing(lambda e: True)
        with pytest.raises(AccessDeniedError):
            await store.put("key", b"x", ObjectHeaders(tags="a=1", encryption="aws:kms"))
        with pytest.raises(AccessDeniedError):
            await store.put("key", b"x", ObjectHeaders())
        assert server.objects == {}


@in_trio
async def test_an_encryption_with_a_key_is_never_left_out() -> None:
    async with faulty_store() as (server, store):
        server.usually = refusing(lambda e: SSE in e.headers)
        with pytest.raises(StoreError):
            await store.put("key", b"x", from_http(KMS))
        assert server.objects == {}


@in_trio
async def test_what_is_private_stays_so() -> None:
    async with faulty_store(new_objects=ObjectHeaders(acl={"x-amz-acl": "public-read"})) as (
        server,
        store,
    ):
        await store.put("new", b"x", ObjectHeaders())
        assert server.seen[-1].headers["x-amz-acl"] == "public-read"
        await store.put("mine", b"x", ObjectHeaders(acl={}))
        assert server.seen[-1].headers["x-amz-acl"] == "private"
        await store.put("granted", b"x", ObjectHeaders(acl={"x-amz-grant-read": 'id="x"'}))
        assert "x-amz-acl" not in server.seen[-1].headers


def test_a_retention_that_is_over_is_not_asked_for() -> None:
    for until_s, is_sent in ((time.time() - 5, False), (time.time() + 600, True)):
        text = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime(until_s))
        sent = to_http(ObjectHeaders(lock_mode="COMPLIANCE", lock_until=text, legal_hold="ON"))
        assert ("x-amz-object-lock-mode" in sent) is is_sent
        assert sent["x-amz-object-lock-legal-hold"] == "ON"


def test_defaults_are_told_as_none() -> None:
    told = from_http({f"{SSE}-bucket-key-enabled": "false", "x-amz-object-lock-legal-hold": "OFF"})
    assert told == ObjectHeaders()


def policy(*grants: tuple[str, str]) -> dict[str, str]:
    text = "".join(
        f"<Grant><Grantee>{who}</Grantee><Permission>{what}</Permission></Grant>"
        for who, what in grants
    )
    content = f"<Owner><ID>me</ID></Owner><AccessControlList>{text}</AccessControlList>"
    document = f"<AccessControlPolicy>{content}</AccessControlPolicy>"
    return granting(parse_xml(document.encode()))


def test_grants_become_the_headers_that_grant_them() -> None:
    mine, group = (
        ("<ID>me</ID>", "FULL_CONTROL"),
        "<URI>http://acs.amazonaws.com/groups/global/{}</URI>",
    )
    everyone, users = group.format("AllUsers"), group.format("AuthenticatedUsers")
    assert policy(mine) == {}
    assert policy(mine, (everyone, "READ")) == {"x-amz-acl": "public-read"}
    assert policy((everyone, "WRITE"), mine, (everyone, "READ")) == {
        "x-amz-acl": "public-read-write"
    }
    assert policy(mine, (users, "READ")) == {"x-amz-acl": "authenticated-read"}
    assert policy(mine, (everyone, "READ_ACP"), ("<ID>you</ID>", "FULL_CONTROL")) == {
        "x-amz-grant-full-control": 'id="me", id="you"',
        "x-amz-grant-read-acp": 'uri="http://acs.amazonaws.com/groups/global/AllUsers"',
    }
    assert policy((everyone, "READ")) == {
        "x-amz-grant-read": 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'
    }


def test_tags_are_written_in_one_order() -> None:
    assert tag_text([("b", "c d"), ("a", "é/+")]) == "a=%C3%A9%2F%2B&b=c%20d"


@in_trio
async def test_tags_that_one_key_refuses_are_asked_of_others() -> None:
    """A policy may go by the key; after three refusals in a row nothing is asked for any more."""

    async def behave_so(exchange: Exchange) -> None:
        if "tagging" in exchange.query and exchange.key.startswith("closed"):
            await exchange.error(403, "AccessDenied")
        else:
            await behave(exchange)

    async with faulty_store() as (server, store):
        server.usually = behave_so
        server.tags = {"a": "1"}
        keys = ["closed", "open", "closed2", "closed3", "closed4"]
        for key in keys:
            await store.put(key, b"x", ObjectHeaders())
        told = [(await store.describe(key)).headers for key in [*keys, "open"]]
        assert [each and each.tags for each in told] == [None, "a=1", None, None, None, None]
        assert len([e for e in server.seen if "tagging" in e.query]) == len(keys)
