"""The S3 server under the benchmarks: where it is, and looking into it past every tool under test."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import boto3
from botocore.config import Config

from bench.process import StepFailed
from bench.relay import RelayProcess

POLL_GAP_S = 0.05
POLL_DUTY = 0.25
"""Looking takes at most this part of the time, so that it does not slow what it waits for."""
URL_LIFETIME_S = 6 * 3600
Sizes = dict[str, int]
"""Keys and their sizes in bytes."""


@dataclass(frozen=True)
class Endpoint:
    """A server and the keys to it. ``ca_file`` vouches for its certificate, where it has one of its own."""

    url: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    ca_file: str | None = None

    def environment(self) -> dict[str, str]:
        """This process's environment without settings for tools under test, with the server's keys."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "S3MOUNT_", "RCLONE_"))
        }
        if self.ca_file is not None:
            # The names by which AWS's libraries, Go, libcurl's users and rclone know it.
            names = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "RCLONE_CA_CERT")
            kept |= dict.fromkeys(names, self.ca_file)
        return kept | {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A boto3 client that neither retries for long nor looks at the user's configuration."""
        session = boto3.Session(self.access_key, self.secret_key, region_name=self.region)
        return session.client(
            "s3",
            endpoint_url=self.url,
            verify=self.ca_file,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "max_attempts": 3},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


@contextmanager
def at_distance(endpoint: Endpoint, rtt_ms: float) -> Iterator[Endpoint]:
    """The same server seen through a relay of ``rtt_ms``; itself, without a relay, for 0."""
    if not rtt_ms:
        yield endpoint
        return
    parts = urllib.parse.urlsplit(endpoint.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with RelayProcess((parts.hostname or "127.0.0.1", port), rtt_ms / 2e3) as relay:
        # A certificate is for a name.
        host = parts.hostname if parts.scheme == "https" else "127.0.0.1"
        yield replace(endpoint, url=f"{parts.scheme}://{host}:{relay.port}")


class Truth:
    """What S3 holds, seen without a relay and without any tool under test."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._client = endpoint.client()
        parts = urllib.parse.urlsplit(endpoint.url)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        if parts.scheme == "https":
            trust = ssl.create_default_context(cafile=endpoint.ca_file)
            self._connection = http.client.HTTPSConnection(parts.netloc, timeout=60, context=trust)

    def make_bucket(self, bucket: str) -> None:
        """Create it; it must not be there yet."""
        self._client.create_bucket(Bucket=bucket)

    def remove_bucket(self, bucket: str) -> None:
        """Delete it with everything in it, unfinished uploads too."""
        uploads = self._client.get_paginator("list_multipart_uploads")
        for page in uploads.paginate(Bucket=bucket):
            for upload in page.get("Uploads", []):
                self._client.abort_multipart_upload(
                    Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        for listing in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [{"Key": one["Key"]} for one in listing.get("Contents", [])]
            if keys:
                self._client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        self._client.delete_bucket(Bucket=bucket)

    def listing(self, bucket: str, prefix: str = "") -> Sizes:
        """All keys below ``prefix``, by boto3."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}

    def wait_until(
        self, bucket: str, prefix: str, holds: Callable[[Sizes], bool], timeout_s: float
    ) -> float:
        """Return the perf_counter time at which S3's listing of ``prefix`` was seen to hold.

        Looks by a listing that costs a tenth of boto3's CPU time, then has boto3 confirm. Raises
        StepFailed when it does not hold within ``timeout_s`` or boto3 sees something else.
        """
        give_up_s = time.perf_counter() + timeout_s
        while True:
            start_s = time.perf_counter()
            sizes = self._look(bucket, prefix)
            seen_s = time.perf_counter()
            if holds(sizes):
                break
            if seen_s > give_up_s:
                held = f"{len(sizes)} keys, {sum(sizes.values())} bytes"
                raise StepFailed(f"deadline of {timeout_s:g} s: S3 holds {held} below {prefix!r}")
            time.sleep(max(POLL_GAP_S, (seen_s - start_s) * (1 / POLL_DUTY - 1)))
        if not holds(self.listing(bucket, prefix)):
            raise StepFailed("boto3's listing does not confirm what had been seen in S3")
        return seen_s

    def _look(self, bucket: str, prefix: str) -> Sizes:
        """All keys below ``prefix``, by presigned requests (botocore asks for URL-encoded keys)."""
        sizes: Sizes = {}
        token = ""
        while True:
            parameters = {"Bucket": bucket, "Prefix": prefix}
            if token:
                parameters["ContinuationToken"] = token
            url = self._client.generate_presigned_url("list_objects_v2", Params=parameters)
            tree = ET.fromstring(self._get(url))
            space = tree.tag.partition("}")[0] + "}" if tree.tag.startswith("{") else ""
            for entry in tree.iter(f"{space}Contents"):
                key, size = entry.findtext(f"{space}Key"), entry.findtext(f"{space}Size")
                if key is not None and size is not None:
                    sizes[urllib.parse.unquote_plus(key)] = int(size)
            token = tree.findtext(f"{space}NextContinuationToken") or ""
            if not token:
                return sizes

    def _get(self, url: str) -> bytes:
        parts = urllib.parse.urlsplit(url)
        for last in (False, True):
            try:
                self._connection.request("GET", f"{parts.path}?{parts.query}")
                response = self._connection.getresponse()
                body = response.read()
            except (ConnectionError, http.client.HTTPException):
                self._connection.close()
                if last:
                    raise
                continue
            if response.status != 200:
                raise StepFailed(f"the listing was answered {response.status}: {body[:200]!r}")
            return body
        raise AssertionError("the second try returns or raises")

    def urls(self, endpoint: Endpoint, bucket: str, keys: list[str]) -> list[str]:
        """Presigned GET URLs of ``keys`` at ``endpoint``."""
        client = endpoint.client()
        return [
            client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=URL_LIFETIME_S
            )
            for key in keys
        ]
