from __future__ import annotations

from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import ServerFaultError
from s3mount.refs import ListPage, ObjectInfo, PartInfo, UploadInfo
from s3mount.s3.documents import (
    parse_complete,
    parse_copy,
    parse_create,
    parse_list,
    parse_parts,
    parse_uploads,
    parse_versioning,
    parse_xml,
)

NS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ODD = [
    *map(chr, range(0x20)),
    "\x7f",
    "\x85",
    "\u2028",
    "\ufffe",
    "\uffff",
    "&",
    "<",
    "+",
    "%",
    "ä",
]
# NUL is in no key: S3 refuses it.
keys = st.text(st.sampled_from([*ODD[1:], "a", "/"]), min_size=1, max_size=12)


def contents(key: str) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>2026-11-21T01:02:03.456Z</LastModified>"
        f"<ETag>&quot;abc&quot;</ETag><Size>5</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def listed(key: str) -> ObjectInfo:
    return ObjectInfo(key, 5, "abc", 1795222923456000000)


def by_reference(key: str) -> str:
    """As Ceph and AWS escape: character references even for what XML cannot hold."""
    return "".join(
        f"&#x{ord(c):02x};" if ord(c) < 0x20 or ord(c) > 0xFFFD else escape(c) for c in key
    )


def raw(key: str) -> str:
    """As LocalStack writes: such characters as they are."""
    return escape(key)


@pytest.mark.parametrize("spell", [by_reference, raw])
@given(key=keys, prefix=keys, token=keys)
def test_any_key_survives_any_spelling(spell, key: str, prefix: str, token: str) -> None:  # type: ignore[no-untyped-def]
    body = (
        f"<ListBucketResult {NS}><IsTruncated>true</IsTruncated>{contents(spell(key))}"
        f"<CommonPrefixes><Prefix>{spell(prefix)}</Prefix></CommonPrefixes>"
        f"<NextContinuationToken>{spell(token)}</NextContinuationToken></ListBucketResult>"
    )
    assert parse_list(body.encode()) == ListPage((listed(key),), (prefix,), token)


@given(key=keys)
def test_keys_that_come_url_encoded_are_decoded(key: str) -> None:
    body = (
        f"<ListBucketResult><EncodingType>url</EncodingType>{contents(quote_plus(key))}"
        "<IsTruncated>false</IsTruncated></ListBucketResult>"
    )
    assert parse_list(body.encode()) == ListPage((listed(key),), (), None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not XML",
        b"<ListBucketResult>",
        b"<Other></Other>",
        b"<html><Contents></Contents></html>",
        b"<Error><IsTruncated>false</IsTruncated></Error>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        contents("a")
        .replace("5", "five")
        .join(("<ListBucketResult>", "</ListBucketResult>"))
        .encode(),
        contents("a")
        .replace("2026", "then")
        .join(("<ListBucketResult>", "</ListBucketResult>"))
        .encode(),
    ],
)
def test_what_is_no_list_is_the_servers_fault(body: bytes) -> None:
    with pytest.raises(ServerFaultError):
        parse_list(body)


@pytest.mark.parametrize("space", ["", NS])
def test_a_document_may_bear_another_name(space: str) -> None:
    """As with AWS's own clients, which do not look at it."""
    page = f"<ListObjectsV2Result {space}><IsTruncated>false</IsTruncated>{contents('a')}</ListObjectsV2Result>"
    assert parse_list(page.encode()) == ListPage((listed("a"),), (), None)
    created = f"<InitiateMultipartUpload {space}><UploadId>id</UploadId></InitiateMultipartUpload>"
    assert parse_create(created.encode()) == "id"
    parts = f"<ListPartsResponse {space}><IsTruncated>false</IsTruncated></ListPartsResponse>"
    assert parse_parts(parts.encode()) == ([], "")


@pytest.mark.parametrize("name", ["VersioningConfiguration", "GetBucketVersioningResponse"])
@pytest.mark.parametrize(
    ("status", "meant"), [("", "off"), ("Enabled", "enabled"), ("Suspended", "suspended")]
)
def test_versioning_that_was_never_on_is_an_empty_document(
    name: str, status: str, meant: str
) -> None:
    told = f"<Status>{status}</Status>" if status else ""
    assert parse_versioning(f"<{name} {NS}>{told}</{name}>".encode()) == meant


@pytest.mark.parametrize("body", [b"<html/>", b"<Error/>", b"<LocationConstraint/>"])
def test_what_tells_nothing_of_versions_is_the_servers_fault(body: bytes) -> None:
    with pytest.raises(ServerFaultError):
        parse_versioning(body)


def test_copies() -> None:
    body = f'\n <CopyObjectResult {NS}><ETag>"abc"</ETag></CopyObjectResult>'
    assert parse_copy(body.encode(), "CopyObjectResult") == ("abc", None)
    part = (
        "<CopyPartResult><ETag>abc</ETag><ChecksumCRC64NVME>x=</ChecksumCRC64NVME></CopyPartResult>"
    )
    assert parse_copy(part.encode(), "CopyPartResult") == ("abc", "x=")
    # So rclone answers a copy onto itself: what became of it has to be looked at.
    assert parse_copy(b"<CopyObjectResult></CopyObjectResult>", "CopyObjectResult") == ("", None)
    with pytest.raises(ServerFaultError):
        parse_copy(b"<CopyPartResult></CopyPartResult>", "CopyPartResult")


def test_multipart_documents() -> None:
    created = (
        f"<InitiateMultipartUploadResult {NS}><Key>a\x01</Key><UploadId>id</UploadId>"
        "</InitiateMultipartUploadResult>"
    )
    assert parse_create(created.encode()) == "id"
    with pytest.raises(ServerFaultError):
        parse_create(b"<InitiateMultipartUploadResult></InitiateMultipartUploadResult>")
    done = f"<CompleteMultipartUploadResult {NS}><ETag>&quot;a-2&quot;</ETag></CompleteMultipartUploadResult>"
    assert parse_complete(done.encode()) == "a-2"
    assert parse_complete(b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>") == ""
    parts = (
        f"<ListPartsResult {NS}><IsTruncated>true</IsTruncated><NextPartNumberMarker>7"
        "</NextPartNumberMarker><Part><PartNumber>7</PartNumber><ETag>a</ETag><Size>3</Size>"
        "</Part></ListPartsResult>"
    )
    assert parse_parts(parts.encode()) == ([PartInfo(7, "a", 3)], "7")
    assert parse_parts(parts.replace("true", "false").encode())[1] == ""
    with pytest.raises(ServerFaultError):
        parse_parts(parts.replace("<Size>3</Size>", "").encode())
    uploads = (
        f"<ListMultipartUploadsResult {NS}><IsTruncated>true</IsTruncated><NextKeyMarker>k&#x1;"
        "</NextKeyMarker><NextUploadIdMarker>m</NextUploadIdMarker><Upload><Key>k\x01</Key>"
        "<UploadId>i</UploadId><Initiated>2026-11-21T01:02:03.000Z</Initiated></Upload>"
        "</ListMultipartUploadsResult>"
    )
    found, more = parse_uploads(uploads.encode())
    assert found == [UploadInfo("k\x01", "i", 1795222923000000000)]
    assert more == [("key-marker", "k\x01"), ("upload-id-marker", "m")]
    assert parse_uploads(uploads.replace("true", "false").encode())[1] == []


@pytest.mark.parametrize(
    "document",
    [
        b'<?xml version="1.0"?>\n<Error><Code>SlowDown</Code></Error>\n',
        b"\n \n<a:Result xmlns:a='x'><a:b/></a:Result>",
        b"<!-- why --><Result></Result>",
        b'<?xml version="1.0"?><Result/>',
        b'<Result a="b"/>',
    ],
)
def test_a_document_without_its_end_is_seen(document: bytes) -> None:
    parse_xml(document)
    for stop in range(len(document.rstrip())):
        with pytest.raises(ServerFaultError):
            parse_xml(document[:stop])


@pytest.mark.parametrize("size", ["", "-5", "1e9", "\u00b2", "9" * 5000, str(1 << 63)])
def test_a_size_that_cannot_be_is_no_answer_of_s3(size: str) -> None:
    entry = contents("a").replace("<Size>5<", f"<Size>{size}<")
    page = f"<ListBucketResult {NS}><IsTruncated>false</IsTruncated>{entry}</ListBucketResult>"
    with pytest.raises(ServerFaultError, match="a list entry lacks"):
        parse_list(page.encode())
