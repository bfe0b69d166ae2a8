"""A bucket of a real server, a local folder, and the commands over many objects as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import S3Server

COMMAND_TIMEOUT_S = 90.0


class Places:
    """``run`` is ``s3mount COMMAND ...``; ``{b}`` in an argument is ``s3://`` and the bucket."""

    def __init__(self, server: S3Server, bucket: str, folder: Path) -> None:
        self.server = server
        self.bucket = bucket
        self.folder = folder
        self.client = server.boto3_client()

    def put(self, *keys: str, body: bytes | None = None, **more: Any) -> None:
        """PutObject of each key, by default with the key as its bytes."""
        for key in keys:
            data = key.encode() if body is None else body
            self.client.put_object(Bucket=self.bucket, Key=key, Body=data, **more)

    def keys(self) -> list[str]:
        """What the bucket holds now."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def versions(self) -> list[tuple[str, str]]:
        """Every version and delete marker: key and id."""
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket)
        return [
            (each["Key"], each["VersionId"])
            for page in pages
            for kind in ("Versions", "DeleteMarkers")
            for each in page.get(kind, ())
        ]

    def argv(self, *words: str, endpoint_url: str | None = None) -> list[str]:
        """The command with all that it needs to find the server."""
        given = [word.replace("{b}", f"s3://{self.bucket}") for word in words]
        length = 2 if given[0] in ("manifest", "pack") else 1
        command, rest = given[:length], given[length:]
        where = ["--endpoint-url", endpoint_url or self.server.endpoint_url, "--path-style"]
        return [sys.executable, "-m", "s3mount", *command, *where, *rest]

    def environment(self) -> dict[str, str]:
        """With a home of its own."""
        return self.server.environment() | {
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
            "XDG_STATE_HOME": str(self.folder / ".state"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    def run(
        self,
        *words: str,
        status: int = 0,
        stdin: bytes = b"",
        endpoint_url: str | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """The command to its end, which must be ``status``."""
        done = subprocess.run(
            self.argv(*words, endpoint_url=endpoint_url),
            env=self.environment(),
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode == status, done.stderr.decode()
        return done

    def lines(self, *words: str, status: int = 0, stdin: bytes = b"") -> list[str]:
        """What the command prints."""
        return self.run(*words, status=status, stdin=stdin).stdout.decode().splitlines()

    def told(self, *words: str, status: int = 0) -> list[dict[str, Any]]:
        """What it prints with ``--json``."""
        return [json.loads(line) for line in self.lines(*words, "--json", status=status)]

    def error(self, *words: str, status: int) -> str:
        """The one line on standard error of a command that fails."""
        said = self.run(*words, status=status).stderr.decode()
        assert said.startswith("s3mount: "), said
        assert said.count("\n") == 1, said
        return said
