"""Random histories of one bucket, known to their writer, and commands that are held against them.

To extend it, for restore or diff say: take the ``history`` fixture of ``conftest.py``, ``play`` some steps, run the
command by ``Commands`` (through ``damaging`` for bytes that change on their way), and compare what it did and what
it said with ``history.now()``, ``history.alive()`` or a state that ``history.now()`` gave before. Steps that change
the bucket beside ``play`` go through ``History``'s own methods (``put``, ``put_parts``, ``delete``,
``destroy``, ``versioning``), so that it keeps knowing all; what a command changed is taken in by ``learn``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from s3mount.manifest.formats import csv_format
from s3mount.manifest.model import Entry
from tests.servers import S3Server
from tests.servers.counting import Decision, Request
from tests.servers.faulty import Fate, FaultyRelay

MIB = 1 << 20
COMMAND_TIMEOUT_S = 100.0
SMALL_BYTES_MAX = 3000
LARGE_BYTES = 300_000
"""More than comes in one request (``checkout.fetching.SMALL_BYTES``)."""
KEYS = ("a", "b/c", "b/d e", "b/ü+%", "large", "parts/usual", "parts/odd", "z/1/2/3")


class StoreContradictsItself(UserWarning):
    """Two lists of the store say different things of one key."""


class Version(NamedTuple):
    """One version; ``body`` of ``None`` is a delete marker."""

    key: str
    version_id: str
    body: bytes | None
    etag: str


class History:
    """Writes one bucket and knows all of it: each key's versions, the oldest first.

    Nothing is asked of the store for what it knows but the ids and ETags that writes are answered with;
    ``assert_is_the_stores`` compares.
    """

    def __init__(self, server: S3Server, bucket: str, seed: int) -> None:
        self.server = server
        self.bucket = bucket
        self.client: Any = server.boto3_client()
        self.chance = random.Random(seed)
        self.versions: dict[str, list[Version]] = {}
        self.given_up: set[str] = set()
        self.keeps = True

    # What there is.

    def now(self) -> dict[str, Version]:
        """The live version of each key that has one."""
        latest = {key: each[-1] for key, each in self.versions.items() if each}
        return {key: each for key, each in latest.items() if each.body is not None}

    def alive(self) -> list[Version]:
        """Every version with bytes that was not destroyed."""
        return [v for each in self.versions.values() for v in each if v.body is not None]

    def write_manifest(self, path: Path, versions: Iterable[Version]) -> Path:
        """A manifest of these versions as ``manifest create`` writes them."""
        with path.open("w", encoding="utf-8", newline="") as file:
            csv_format.PlainWriter(file).write([self.entry(version) for version in versions])
        return path

    def entry(self, version: Version) -> Entry:
        """What a manifest says of it."""
        size = len(version.body or b"")
        return Entry(self.bucket, version.key, version.version_id, size, version.etag)

    def learn(self) -> None:
        """Take in what others (a restore) did meanwhile: all versions anew, as the store has them."""
        self.versions = self._read()

    def assert_is_the_stores(self) -> None:
        """The store's own versions are those that the writer knows, by ids, bytes and order."""
        assert self._read() == {key: each for key, each in self.versions.items() if each}

    def _read(self) -> dict[str, list[Version]]:
        read = {key: self._read_key(key) for key in sorted({*KEYS, *self.versions})}
        return {key: versions for key, versions in read.items() if versions}

    def _read_key(self, key: str) -> list[Version]:
        versions, markers = self._told(key)
        mine = [(each, True) for each in versions] + [(each, False) for each in markers]
        latest = [each["VersionId"] for each, _ in mine if each["IsLatest"]]
        # The store lists the newest first.
        read = [self._read_one(key, each, has_body) for each, has_body in reversed(mine)]
        # Lists tell whole seconds, and markers apart from versions: only the newest is certain.
        known = [v.version_id for v in self.versions.get(key, [])]
        order = {version_id: place for place, version_id in enumerate(known)}
        read.sort(key=lambda v: (v.version_id in latest, order.get(v.version_id, len(order))))
        return read

    def _told(self, key: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The versions and the delete markers that the store lists of a key, the newest first."""
        told = self.client.list_object_versions(Bucket=self.bucket, Prefix=key)
        versions, markers = (
            [each for each in told.get(kind, []) if each["Key"] == key]
            for kind in ("Versions", "DeleteMarkers")
        )
        return versions, markers

    def _read_one(self, key: str, told: dict[str, Any], has_body: bool) -> Version:
        version_id = told["VersionId"]
        if not has_body:
            return Version(key, version_id, None, "")
        got = self.client.get_object(Bucket=self.bucket, Key=key, VersionId=version_id)
        return Version(key, version_id, got["Body"].read(), told["ETag"].strip('"'))

    # What is done.

    def play(self, steps: int) -> None:
        """So many random steps: puts, uploads in parts, deletes, markers removed, versions destroyed, versioning."""
        for _ in range(steps):
            key = self.chance.choice([key for key in KEYS if key not in self.given_up])
            self._step(self.chance.random(), key)
            self._begin_anew_where_contradicted(key)

    def _begin_anew_where_contradicted(self, key: str) -> None:
        """Destroy a key's whole history where the store contradicts itself, and say so: no command can tell right.

        LocalStack does, where versioning is or was suspended: it lists keys whose latest version is a marker, hides
        others whose latest is an object, and calls two versions of a key the latest. Ceph 16 shows keys of which the
        last version was destroyed as empty objects that nothing lists; they are left alone from then on.
        """
        contradiction = self._contradiction(key)
        if not contradiction:
            return
        for told in (each for kind in self._told(key) for each in kind):
            self.client.delete_object(Bucket=self.bucket, Key=key, VersionId=told["VersionId"])
        self.versions.pop(key, None)
        follows = "its history begins anew"
        if self._contradiction(key):
            assert self._told(key) == ([], [])
            self.given_up.add(key)
            follows = "it is given up"
        warnings.warn(f"{contradiction}; {follows}", StoreContradictsItself, stacklevel=3)

    def _contradiction(self, key: str) -> str:
        """What the store says of the key's latest version in three ways, or an empty string."""
        latest, markers = ([each for each in kind if each["IsLatest"]] for kind in self._told(key))
        page = self.client.list_objects_v2(Bucket=self.bucket, Prefix=key)
        listed = [each["ETag"] for each in page.get("Contents", []) if each["Key"] == key]
        try:
            shown = [self.client.head_object(Bucket=self.bucket, Key=key).get("ETag")]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            shown = []
        etags = [each["ETag"] for each in latest]
        if etags == listed == shown and len(latest) + len(markers) <= 1:
            return ""
        return (
            f"{self.server.name} lists {listed} at {key!r} and shows {shown}, while {etags} and "
            f"{len(markers)} delete markers are the latest"
        )

    def _step(self, dice: float, key: str) -> None:
        chance = self.chance
        if dice < 0.55:
            self.put_random(key)
        elif dice < 0.72:
            self.delete(key)
        elif dice < 0.82 and any(v.body is None for v in self.versions.get(key, [])):
            self.destroy(chance.choice([v for v in self.versions[key] if v.body is None]))
        elif dice < 0.92 and self.versions.get(key):
            self.destroy(chance.choice(self.versions[key]))
        elif dice >= 0.92:
            self.versioning(enabled=not self.keeps)

    def put_random(self, key: str) -> Version:
        """New bytes for ``key``: in parts below ``parts/``, many for ``large``, few for others."""
        chance = self.chance
        if key == "parts/usual":
            return self.put_parts(key, [chance.randbytes(5 * MIB), chance.randbytes(1000)])
        if key == "parts/odd":
            lengths = (5 * MIB + 4321, 5 * MIB, 1000)
            return self.put_parts(key, [chance.randbytes(n) for n in lengths])
        size = LARGE_BYTES if key == "large" else chance.randrange(SMALL_BYTES_MAX)
        return self.put(key, chance.randbytes(size))

    def put(self, key: str, body: bytes, **more: Any) -> Version:
        """PutObject."""
        told = self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        return self._keep(key, told.get("VersionId", "null"), body, told["ETag"])

    def put_parts(self, key: str, bodies: list[bytes], **more: Any) -> Version:
        """A multipart upload of these parts; ``more`` is for CreateMultipartUpload."""
        place = {"Bucket": self.bucket, "Key": key}
        upload = {
            **place,
            "UploadId": self.client.create_multipart_upload(**place, **more)["UploadId"],
        }
        parts = []
        for number, body in enumerate(bodies, 1):
            sent = self.client.upload_part(**upload, PartNumber=number, Body=body)
            told = {name: value for name, value in sent.items() if name.startswith("Checksum")}
            parts.append({"PartNumber": number, "ETag": sent["ETag"], **told})
        done = self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        # Ceph 16 tells no ETag when it completes an upload.
        etag = done.get("ETag") or self.client.head_object(**place).get("ETag", "")
        return self._keep(key, done.get("VersionId", "null"), b"".join(bodies), etag)

    def delete(self, key: str) -> None:
        """DeleteObject without a version: a delete marker."""
        told = self.client.delete_object(Bucket=self.bucket, Key=key)
        self._keep(key, told.get("VersionId", "null"), None, "")
        if not self.keeps or "VersionId" not in told:
            # The marker takes the place of the version without an id; Ceph 16 keeps both. It also adds no marker
            # to some keys that end with one.
            self.versions[key] = self._read_key(key)

    def destroy(self, version: Version) -> None:
        """Delete exactly this version or marker, for good."""
        self.client.delete_object(Bucket=self.bucket, Key=version.key, VersionId=version.version_id)
        self.versions[version.key].remove(version)

    def versioning(self, *, enabled: bool) -> None:
        """Let the bucket keep versions, or suspend it."""
        status = {"Status": "Enabled" if enabled else "Suspended"}
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=status)
        self.keeps = enabled

    def _keep(self, key: str, version_id: str, body: bytes | None, etag: str) -> Version:
        made = Version(key, version_id or "null", body, etag.strip('"'))
        others = [v for v in self.versions.get(key, []) if v.version_id != made.version_id]
        self.versions[key] = [*others, made]
        return made


class Outcome(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        """The JSON of ``--json``; its last line where there is one for each thing."""
        text = self.stdout if self.stdout.startswith("{\n") else self.stdout.splitlines()[-1]
        found: dict[str, Any] = json.loads(text)
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of JSON."""
        return [json.loads(line) for line in self.stdout.splitlines()]


class Commands:
    """Runs ``s3mount`` with a home of its own; ``endpoint_url`` may be a relay's."""

    def __init__(self, server: S3Server, home: Path) -> None:
        self._server = server
        self.home = home
        self.endpoint_url = server.endpoint_url

    def __call__(self, *words: str | Path, stdin: str = "") -> Outcome:
        """Run it to its end. A traceback fails the test."""
        done = subprocess.run(
            self.argv(*words),
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    def argv(self, *words: str | Path) -> list[str]:
        """The command line."""
        where = ["--endpoint-url", self.endpoint_url, "--path-style"]
        return [sys.executable, "-m", "s3mount", *map(str, words), *where]

    def environment(self) -> dict[str, str]:
        """With a home, a cache and a state folder of its own."""
        return self._server.environment() | {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }


@contextlib.contextmanager
def damaging(
    commands: Commands, bucket: str, fate: Fate = Fate.SPOIL_RECEIVING
) -> Iterator[FaultyRelay]:
    """While the block lasts, every answer with an object's bytes is damaged on its way to ``commands``."""

    def decide(request: Request) -> Decision:
        is_of_a_key = request.path.removeprefix(f"/{bucket}").strip("/") != ""
        is_a_document = "attributes" in request.query or "uploads" in request.query
        return fate if request.method == "GET" and is_of_a_key and not is_a_document else None

    direct = commands.endpoint_url
    with FaultyRelay(direct) as relay:
        relay.decide = decide
        commands.endpoint_url = relay.url
        try:
            yield relay
        finally:
            commands.endpoint_url = direct


def files_below(folder: Path) -> dict[str, bytes]:
    """All files in a folder by their paths."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def wrong_files(folder: Path, wanted: Iterable[Version]) -> list[str]:
    """The files that do not hold what they should, those that are missing not among them."""
    truth = {version.key: version.body for version in wanted}
    return sorted(path for path, body in files_below(folder).items() if body != truth.get(path))
