"""The real transfer commands against a real server, with a home of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import S3Server

COMMAND_TIMEOUT_S = 100.0
MIB = 1 << 20


class Moving:
    """Runs ``s3mount`` commands on a bucket, beside boto3."""

    def __init__(self, server: S3Server, bucket: str, folder: Path) -> None:
        self.server = server
        self.bucket = bucket
        self.client = server.boto3_client()
        self.folder = folder
        self.endpoint_url = server.endpoint_url

    @property
    def s3(self) -> str:
        """The bucket as a URL."""
        return f"s3://{self.bucket}"

    def argv(self, command: str, *arguments: str) -> list[str]:
        """A command."""
        where = ("--endpoint-url", self.endpoint_url, "--path-style")
        return [sys.executable, "-m", "s3mount", command, *where, *arguments]

    def environment(self) -> dict[str, str]:
        """With a home of its own."""
        return self.server.environment() | {
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    def run(
        self, command: str, *arguments: str, stdin: bytes = b"", **more: str
    ) -> subprocess.CompletedProcess[bytes]:
        """A command to its end."""
        return subprocess.run(
            self.argv(command, *arguments),
            env=self.environment() | more,
            input=stdin,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd=self.folder,
        )

    def start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command as a process that is killed."""
        return subprocess.Popen(
            self.argv(command, *arguments),
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def told(
        self, command: str, *arguments: str, status: int = 0, stdin: bytes = b""
    ) -> list[dict[str, Any]]:
        """What a command tells of each object, and in the end of all."""
        done = self.run(command, "--json", *arguments, stdin=stdin)
        assert done.returncode == status, (done.stdout + done.stderr).decode()
        assert b"Traceback" not in done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def keys(self, prefix: str = "") -> list[str]:
        """All keys in the bucket."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [each["Key"] for each in found.get("Contents", ())]

    def get(self, key: str, bucket: str | None = None) -> bytes:
        """An object's bytes."""
        body = self.client.get_object(Bucket=bucket or self.bucket, Key=key)["Body"].read()
        assert isinstance(body, bytes)
        return body

    def put(self, key: str, data: bytes, **more: Any) -> Any:
        """PutObject."""
        return self.client.put_object(Bucket=self.bucket, Key=key, Body=data, **more)

    def uploads(self) -> list[str]:
        """The keys that have unfinished uploads."""
        found = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [each["Key"] for each in found.get("Uploads", ())]

    def write(self, name: str, data: bytes) -> Path:
        """A local file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)
