"""The table of what is kept with an object, in docs/SEMANTICS.md, walked through on a mount.

What a server itself does not honour when boto3 asks for it is not expected of it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import ClientError

from tests.mounting import Mount
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3

DOCUMENT = Path(__file__).parents[2] / "docs/SEMANTICS.md"
ACTS = ("write", "append", "chmod", "mv", "cp")
CELLS = {"kept", "new", "copied"}
BODY_BYTES = 20_000
"""Of this size on, what S3 has already is copied there."""
SSE = "x-amz-server-side-encryption"


class Property(NamedTuple):
    """How boto3 asks for it with a PUT or COPY, and reads it."""

    request: dict[str, Any]
    told: Callable[[Eyes, str], Any]


class Eyes:
    """boto3's look at one bucket."""

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def put(self, key: str, body: bytes, **request: Any) -> bool:
        return self._does(self.client.put_object, Key=key, Body=body, **request)

    def copy(self, source: str, key: str, **request: Any) -> bool:
        place = {"Bucket": self.bucket, "Key": source}
        return self._does(self.client.copy_object, Key=key, CopySource=place, **request)

    def _does(self, call: Callable[..., Any], **request: Any) -> bool:
        try:
            call(Bucket=self.bucket, **request)
        except ClientError:
            return False
        return True

    def headers(self, key: str) -> dict[str, str]:
        said = self.client.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
        return dict(said["ResponseMetadata"]["HTTPHeaders"])

    def tags(self, key: str) -> list[tuple[str, str]]:
        said = self.client.get_object_tagging(Bucket=self.bucket, Key=key)
        return sorted((tag["Key"], tag["Value"]) for tag in said.get("TagSet", ()))

    def grants(self, key: str) -> list[tuple[str, str]]:
        said = self.client.get_object_acl(Bucket=self.bucket, Key=key)
        found = [(grant["Grantee"].get("URI", ""), grant["Permission"]) for grant in said["Grants"]]
        return sorted(grant for grant in found if grant[0])


def header(*names: str) -> Callable[[Eyes, str], Any]:
    """What HEAD tells under these names; times to the second."""

    def told(eyes: Eyes, key: str) -> list[str]:
        headers = eyes.headers(key)
        return [re.sub(r"\.0+Z$", "Z", headers.get(name, "")) for name in names]

    return told


def checksums(eyes: Eyes, key: str) -> list[str]:
    names = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")
    return [name for name in names if f"x-amz-checksum-{name}" in eyes.headers(key)]


LATER = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(hours=1)
PROPERTIES = {
    "Content-Type": Property({"ContentType": "text/x-kept"}, header("content-type")),
    "Content-Encoding": Property({"ContentEncoding": "zstd"}, header("content-encoding")),
    "Content-Language": Property({"ContentLanguage": "de"}, header("content-language")),
    "Content-Disposition": Property(
        {"ContentDisposition": 'inline; filename="k"'}, header("content-disposition")
    ),
    "Cache-Control": Property({"CacheControl": "max-age=7"}, header("cache-control")),
    "Expires": Property({"Expires": LATER}, header("expires")),
    "user metadata": Property({"Metadata": {"author": "ann"}}, header("x-amz-meta-author")),
    "tags": Property({"Tagging": "a=1&b=c%20d"}, Eyes.tags),
    "ACL": Property({"ACL": "public-read"}, Eyes.grants),
    "storage class": Property({"StorageClass": "STANDARD_IA"}, header("x-amz-storage-class")),
    "encryption": Property(
        {
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": "arn:aws:kms:us-east-1:000000000000:key/1-2-3",
            "BucketKeyEnabled": True,
        },
        header(SSE, f"{SSE}-aws-kms-key-id", f"{SSE}-bucket-key-enabled"),
    ),
    "website redirect": Property(
        {"WebsiteRedirectLocation": "/elsewhere"}, header("x-amz-website-redirect-location")
    ),
    "object lock": Property(
        {
            "ObjectLockMode": "GOVERNANCE",
            "ObjectLockRetainUntilDate": LATER,
            "ObjectLockLegalHoldStatus": "ON",
        },
        header(
            "x-amz-object-lock-mode",
            "x-amz-object-lock-retain-until-date",
            "x-amz-object-lock-legal-hold",
        ),
    ),
    "checksum algorithm": Property({"ChecksumAlgorithm": "SHA256"}, checksums),
}
CARRIED = {*list(PROPERTIES)[:7]}
"""What S3's copy takes along by itself."""
LEAST = {"Content-Type", "Cache-Control", "user metadata", "tags", "ACL", "object lock"}
"""Every server of these tests honours them."""


def table() -> dict[str, dict[str, str]]:
    """The document's table: for each property what becomes of it by each act."""
    text = DOCUMENT.read_text()
    start = text.index("| stored with the object |")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[start:].partition("\n\n")[0].splitlines()
    ]
    assert tuple(rows[0][1:]) == ACTS
    return {row[0]: dict(zip(ACTS, row[1:], strict=True)) for row in rows[2:]}


def test_the_table_tells_of_every_property() -> None:
    told = table()
    assert told.keys() == PROPERTIES.keys()
    assert {cell for row in told.values() for cell in row.values()} <= CELLS


@pytest.fixture
def locking_bucket(s3_server: S3Server) -> Iterator[str]:
    """A bucket that heeds object lock and ACLs."""
    client = s3_server.boto3_client()
    name = f"test-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    s3_server.enable_acls(name)
    yield name
    if s3_server.lasting:
        for entry in client.list_object_versions(Bucket=name).get("Versions", ()):
            which = {"Bucket": name, "Key": entry["Key"], "VersionId": entry["VersionId"]}
            with contextlib.suppress(ClientError):
                client.put_object_legal_hold(**which, LegalHold={"Status": "OFF"})
            client.delete_object(**which, BypassGovernanceRetention=True)
        s3_server.remove_bucket(name)


def change(folder: Path, act: str, name: str) -> str:
    """Do it to the file; the name that is to be looked at then."""
    path = folder / name
    if act == "write":
        path.write_bytes(b"other")
    elif act == "append":
        with path.open("ab") as file:
            file.write(b"more")
    elif act == "chmod":
        path.chmod(0o600)
    elif act == "mv":
        os.rename(path, folder / f"{name}-moved")
        return f"{name}-moved"
    else:
        shutil.copyfile(path, folder / f"{name}-copy")
        return f"{name}-copy"
    return name


def test_what_is_kept(
    s3_server: S3Server, locking_bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    eyes = Eyes(s3_server.boto3_client(), locking_bucket)
    eyes.put("plain", b"x")
    honoured: dict[str, Any] = {}
    for number, (name, wanted) in enumerate(PROPERTIES.items()):
        body = bytes([number]) * BODY_BYTES
        keys = [f"{number}-{act}" for act in ACTS]
        if not all(eyes.put(key, body, **wanted.request) for key in keys):
            continue
        value = wanted.told(eyes, keys[0])
        if value != wanted.told(eyes, "plain"):
            honoured[name] = value
    assert honoured.keys() >= LEAST

    def copied(name: str, **request: Any) -> Any:
        """What boto3's copy of the untouched object has."""
        eyes.copy(f"{list(PROPERTIES).index(name)}-cp", "copied", **request)
        return PROPERTIES[name].told(eyes, "copied")

    mount = mount_factory(locking_bucket)
    (mount.path / "new").write_bytes(b"new")
    names = {
        (name, act): change(mount.path, act, f"{list(PROPERTIES).index(name)}-{act}")
        for name in honoured
        for act in ACTS
    }
    mount.wait()
    promised, wrong = table(), []
    for (name, act), key in names.items():
        told = PROPERTIES[name].told
        expected = [honoured[name]]
        if promised[name][act] == "new":
            expected = [told(eyes, "new")]
        elif promised[name][act] == "copied":
            expected = [copied(name)]
        elif act in ("chmod", "mv") and name != "tags":
            # What the server does not take with a copy, or loses by one, cannot be kept by one.
            expected.append(copied(name, MetadataDirective="REPLACE", **PROPERTIES[name].request))
            if act == "mv" and name in CARRIED:
                expected.append(copied(name))
        if (found := told(eyes, key)) not in expected:
            wrong.append(f"{name} by {act}: {found}, not {expected}")
    assert not wrong, "\n".join(wrong)
