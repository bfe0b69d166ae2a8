"""The real command on a versioned bucket of a real server, with folders of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s3mount.manifest.formats import csv_format
from s3mount.manifest.model import Entry
from tests.servers import S3Server

COMMAND_TIMEOUT_S = 90.0


class Checkout:
    """Writes versions with boto3, manifests by hand, and runs ``s3mount checkout``."""

    def __init__(self, server: S3Server, bucket: str, folder: Path) -> None:
        self.server = server
        self.bucket = bucket
        self.client = server.boto3_client()
        self.manifest = folder / "manifest.csv"
        self.folder = folder / "target"
        self.home = folder
        self.source: str | None = None
        """Given in place of the manifest's path."""

    def put(self, key: str, data: bytes, **arguments: Any) -> Entry:
        """PutObject; what a manifest says of it."""
        told = self.client.put_object(Bucket=self.bucket, Key=key, Body=data, **arguments)
        return self._entry(key, told, len(data))

    def put_parts(self, key: str, data: bytes, part_bytes: int) -> Entry:
        """The same by a multipart upload."""
        place = {"Bucket": self.bucket, "Key": key}
        upload = self.client.create_multipart_upload(**place)["UploadId"]
        parts = []
        for number, start in enumerate(range(0, len(data), part_bytes), 1):
            body = data[start : start + part_bytes]
            sent = self.client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        told = self.client.complete_multipart_upload(
            **place, UploadId=upload, MultipartUpload={"Parts": parts}
        )
        # Ceph 16 does not tell the ETag when it completes an upload.
        found = self.client.head_object(**place, VersionId=told["VersionId"])
        return self._entry(key, found, len(data))

    def _entry(self, key: str, told: dict[str, Any], size: int) -> Entry:
        return Entry(self.bucket, key, told["VersionId"], size, told["ETag"].strip('"'))

    def write_manifest(self, entries: Iterable[Entry]) -> None:
        """Write the manifest that ``run`` is given."""
        with self.manifest.open("w", encoding="utf-8", newline="") as file:
            csv_format.PlainWriter(file).write(list(entries))

    def argv(self, *options: str, endpoint_url: str | None = None) -> list[str]:
        """The command."""
        return [
            *(sys.executable, "-m", "s3mount", "checkout"),
            *(self.source or str(self.manifest), str(self.folder)),
            *("--endpoint-url", endpoint_url or self.server.endpoint_url, "--path-style"),
            *options,
        ]

    def environment(self) -> dict[str, str]:
        """With a home and a cache of its own."""
        return self.server.environment() | {
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    def start(self, *options: str, endpoint_url: str | None = None) -> subprocess.Popen[str]:
        """The command as a process."""
        return subprocess.Popen(
            self.argv(*options, endpoint_url=endpoint_url),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def create_manifest(self) -> None:
        """Write the manifest with ``s3mount manifest create``."""
        where = ["--endpoint-url", self.server.endpoint_url, "--path-style"]
        argv = [sys.executable, "-m", "s3mount", "manifest", "create", f"s3://{self.bucket}"]
        subprocess.run(
            [*argv, "-o", str(self.manifest), *where],
            env=self.environment(),
            check=True,
            timeout=COMMAND_TIMEOUT_S,
        )

    def run(
        self, *options: str, endpoint_url: str | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """The command to its end."""
        return subprocess.run(
            self.argv(*options, endpoint_url=endpoint_url),
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )

    def summary(self, *options: str, status: int = 0, **where: str) -> dict[str, Any]:
        """The summary of a run that ends with ``status``."""
        done = self.run("--json", *options, **where)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def files(self) -> dict[str, bytes]:
        """All files in the folder by their paths."""
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }
