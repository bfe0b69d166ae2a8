"""A bucket with a past: versions of many files of many sizes, later changed and deleted, and what was when."""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from bench.process import StepFailed
from bench.server import Endpoint
from s3mount.manifest.formats import csv_format
from s3mount.manifest.model import Entry

REMOVAL_TRIES = 3
THREADS = 8
FILES_PER_FOLDER = 100
SPREAD = 1.3
"""Of the log-normal sizes: half of the files are below 0.4 of the mean, one in a hundred above 9 of it."""


@dataclass
class Past:
    """The bucket: ``digests`` tells the SHA-256 of each key at ``at``, ``bytes`` their sizes together."""

    endpoint: Endpoint
    bucket: str
    files: int
    bytes: int
    digests: dict[str, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    at: datetime.datetime | None = None

    def __post_init__(self) -> None:
        self._client = self.endpoint.client()
        self._clients = ThreadPoolExecutor(THREADS)

    def fill(self) -> None:
        """Make the bucket, with versions, and put every file once."""
        self._client.create_bucket(Bucket=self.bucket)
        self._client.put_bucket_versioning(
            Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        rng = random.Random(7)
        weights = [rng.lognormvariate(0, SPREAD) for _ in range(self.files)]
        scale = self.bytes / sum(weights)
        jobs = [
            (f"d{number // FILES_PER_FOLDER:04d}/f{number:06d}.bin", max(1, int(weight * scale)))
            for number, weight in enumerate(weights)
        ]
        for entry, digest in self._clients.map(lambda job: self._put(*job), jobs):
            self.entries.append(entry)
            self.digests[entry.key] = digest
        self.bytes = sum(entry.size or 0 for entry in self.entries)

    def _put(self, key: str, size: int) -> tuple[Entry, str]:
        data = os.urandom(size)
        told = self._client.put_object(Bucket=self.bucket, Key=key, Body=data)
        if "VersionId" not in told:
            raise StepFailed("this server keeps no versions")
        entry = Entry(self.bucket, key, told["VersionId"], size, told["ETag"].strip('"'))
        return entry, hashlib.sha256(data).hexdigest()

    def write_manifest(self, path: Path) -> None:
        """Write the versions of ``fill`` as a manifest."""
        with path.open("w", encoding="utf-8", newline="") as file:
            csv_format.PlainWriter(file).write(self.entries)

    def move_on(self) -> None:
        """Change a tenth of the files and delete a twentieth; ``at`` is a time before that."""
        began = self._now()
        while self._now() <= began + datetime.timedelta(seconds=2):
            time.sleep(0.2)
        keys = sorted(self.digests)
        delete = self._client.delete_object
        changes: list[Future[Any]] = [self._clients.submit(self._put, k, 1000) for k in keys[::10]]
        changes += [self._clients.submit(delete, Bucket=self.bucket, Key=k) for k in keys[5::20]]
        for change in changes:
            change.result()
        self.at = began + datetime.timedelta(seconds=1)

    def _now(self) -> datetime.datetime:
        """The server's clock, at its resolution of a second."""
        told = self._client.head_bucket(Bucket=self.bucket)
        date = told["ResponseMetadata"]["HTTPHeaders"]["date"]
        form = "%a, %d %b %Y %H:%M:%S %Z"
        return datetime.datetime.strptime(date, form).replace(tzinfo=datetime.UTC)

    def check(self, folder: Path, keys: list[str] | None = None) -> None:
        """Raise StepFailed unless ``folder`` holds exactly the past, or there what ``keys`` name."""
        wanted = self.digests if keys is None else {key: self.digests[key] for key in keys}
        if keys is None:
            there = {
                path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
            }
            if there != set(wanted):
                raise StepFailed(f"{len(there)} files are there, not the {len(wanted)}")
        for key, digest in wanted.items():
            with (folder / key).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise StepFailed(f"{key} has other bytes than were written")

    def remove(self) -> None:
        """Delete the bucket with all its versions. Raises StepFailed when the server does not let it go."""
        self._clients.shutdown()
        for _ in range(REMOVAL_TRIES):
            self._remove_versions()
            try:
                self._client.delete_bucket(Bucket=self.bucket)
            except ClientError as error:
                reason = str(error)
            else:
                return
        raise StepFailed(f"the bucket {self.bucket} is left behind: {reason}")

    def _remove_versions(self) -> None:
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket)
        for page in pages:
            doomed = [
                {"Key": one["Key"], "VersionId": one["VersionId"]}
                for one in page.get("Versions", []) + page.get("DeleteMarkers", [])
            ]
            if doomed:
                self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": doomed, "Quiet": True}
                )
