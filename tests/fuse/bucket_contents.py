"""What a bucket holds, read through boto3 and never through the mount."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from botocore.exceptions import ClientError

OWN_PREFIX = ".s3mount"
"""Begins the keys at the top of a bucket that the mount keeps for itself: its marker, its trials."""


class Held(NamedTuple):
    """One listed object; ``etag`` without its quotes."""

    size: int
    etag: str


class BucketContents(Protocol):
    """The objects of one bucket."""

    def listing(self, prefix: str = "") -> dict[str, Held]:
        """All objects whose keys begin with ``prefix``."""
        ...

    def read(self, key: str) -> bytes:
        """An object's bytes. Raises KeyError when there is none."""
        ...

    def metadata(self, key: str) -> Mapping[str, str]:
        """An object's user metadata, names in lower case. Raises KeyError when there is none."""
        ...

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Write an object as a stranger would."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object as a stranger would."""
        ...


class S3Contents:
    """BucketContents of a real bucket, by a boto3 client of its own."""

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def listing(self, prefix: str = "", *, with_own: bool = False) -> dict[str, Held]:
        """All objects whose keys begin with ``prefix``.

        Those that the mount makes for itself (OWN_PREFIX) are left out unless asked for.
        """
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return {
            found["Key"]: Held(found["Size"], found["ETag"].strip('"'))
            for page in pages
            for found in page.get("Contents", [])
            if with_own or not found["Key"].startswith(OWN_PREFIX)
        }

    def read(self, key: str) -> bytes:
        """An object's bytes. Raises KeyError when there is none."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
        except self.client.exceptions.NoSuchKey:
            raise KeyError(key) from None
        return bytes(answer["Body"].read())

    def metadata(self, key: str) -> Mapping[str, str]:
        """An object's user metadata, names in lower case. Raises KeyError when there is none."""
        try:
            answer = self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                raise KeyError(key) from None
            raise
        return {name.lower(): value for name, value in answer["Metadata"].items()}

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Write an object as a stranger would."""
        self.client.put_object(
            Bucket=self.bucket, Key=key, Body=body, Metadata=dict(metadata or {})
        )

    def delete(self, key: str) -> None:
        """Delete an object as a stranger would."""
        self.client.delete_object(Bucket=self.bucket, Key=key)


def posix_attributes(metadata: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Mode (with its type), uid, gid and mtime in nanoseconds, as s3fs writes them."""
    seconds, _, fraction = metadata["mtime"].partition(".")
    nanoseconds = int(fraction.ljust(9, "0")) if fraction else 0
    return (
        int(metadata["mode"]),
        int(metadata["uid"]),
        int(metadata["gid"]),
        int(seconds) * 1_000_000_000 + nanoseconds,
    )


def wait_until(true: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
    """Ask until it is true. Raises AssertionError, naming ``what``, when the time is over."""
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)
