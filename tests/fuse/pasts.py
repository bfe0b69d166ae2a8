"""Buckets with a past, and manifests of them, for the tests of snapshot mounts."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from s3mount.manifest.times import format_time
from tests.servers import S3Server


class Version(NamedTuple):
    """One version as its writer knows it."""

    bucket: str
    key: str
    version_id: str
    body: bytes
    etag: str


class Writer:
    """Writes versions of objects, without the mount."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self.client: Any = server.boto3_client()
        self.bucket = bucket
        self.current: dict[str, Version] = {}

    def put(self, key: str, body: bytes, **more: Any) -> Version:
        said = self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        version_id = said.get("VersionId", "null")
        etag = said["ETag"].strip('"')
        self.current[key] = Version(self.bucket, key, version_id, body, etag)
        return self.current[key]

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)
        self.current.pop(key, None)

    def destroy(self, version: Version) -> None:
        """Delete exactly this version, for good."""
        self.client.delete_object(Bucket=self.bucket, Key=version.key, VersionId=version.version_id)

    def now_ns(self) -> int:
        """The store's own time, as it dates what is written now."""
        return store_time_ns(self.client, self.bucket)

    def moment(self) -> str:
        """A time between what was written so far and what will be written, as people write it."""
        at_ns = self.now_ns()
        while self.now_ns() <= at_ns:
            time.sleep(0.002)
        return format_time(at_ns)


def store_time_ns(client: Any, bucket: str) -> int:
    """How the store dates what is written now, which is written and destroyed again."""
    key = ".clock"
    said = client.put_object(Bucket=bucket, Key=key, Body=b"")
    listed = client.list_object_versions(Bucket=bucket, Prefix=key)["Versions"]
    version_id = said.get("VersionId", "null")
    (dated,) = [each for each in listed if each["VersionId"] == version_id]
    client.delete_object(Bucket=bucket, Key=key, VersionId=version_id)
    dated_s: float = dated["LastModified"].timestamp()
    return round(dated_s * 1000) * 1_000_000


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_manifest(path: Path, versions: Iterable[Version]) -> Path:
    """A manifest of these versions, with sizes and ETags."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["bucket", "key", "version_id", "size", "etag"])
        for each in versions:
            lines.writerow([each.bucket, each.key, each.version_id, len(each.body), each.etag])
    return path


def write_old_manifest(path: Path, versions: Iterable[Version]) -> Path:
    """A manifest of two columns: it knows neither bucket nor sizes."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((each.key, each.version_id) for each in versions)
    return path
