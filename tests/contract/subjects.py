"""The stores that the contract suite runs against."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import msgspec
import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.engine.client import EngineClient
from s3mount.refs import Capabilities
from s3mount.s3.client import S3Store
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore
from tests.conftest import SERVERS
from tests.servers import S3Server

SUBJECTS: tuple[str, ...] = ("memory", "localstack", "ceph-http", "ceph-https", "localstack-engine")
"""The last one is LocalStack again, from behind the engine's process."""
if "given" in SERVERS:
    SUBJECTS += ("given",)

PROBED = ".s3mount/probe-contract"
_found: dict[bool, Capabilities] = {}
"""What the given server was seen to honour, in a bucket without and with versions."""

Body: TypeAlias = Callable[[Store], Awaitable[None]]


class Subject:
    """One kind of store: ``run(body)`` opens it on this test's bucket and runs ``body``.

    ``able`` is what its probe must find, in a bucket without and with versions.
    """

    def __init__(self, name: str, server: S3Server | None) -> None:
        self.name = name
        self.server = server
        self._memory: dict[bool, MemoryStore] = {}
        self._buckets: dict[bool, str] = {}

    @property
    def is_real(self) -> bool:
        return self.server is not None

    def able(self, versioned: bool) -> Capabilities:
        common = Capabilities(
            etag_is_md5=True,
            content_md5=True,
            markers=True,
            marker_metadata=True,
            lists_versions=True,
            part_copies=True,
            may_write=True,
        )
        if self.name.startswith("ceph"):
            return msgspec.structs.replace(
                common,
                if_match=not versioned,
                if_absent=not versioned,
                complete_condition=False,
                counts_tags=True,
                copy_condition=False,
                copy_source_condition=False,
                delete_condition=False,
                # Ceph 16 refuses the true ETag as well in a bucket that keeps versions.
                unusable=("PUT If-Match",) if versioned else (),
                atomic=None if versioned else True,
            )
        return msgspec.structs.replace(
            common,
            if_match=True,
            if_absent=True,
            complete_condition=True,
            checksum="crc64nvme",
            # LocalStack's CopyObject knows no If-None-Match, and its DeleteObject no If-Match.
            copy_condition=not self.is_real,
            copy_source_condition=True,
            delete_condition=not self.is_real,
            atomic=True,
            copied_checksums=True,
            # LocalStack's HEAD tells nothing of tags.
            counts_tags=not self.is_real,
        )

    def config(self, bucket: str) -> StoreConfig:
        assert self.server is not None
        https = self.name.endswith("https")
        return StoreConfig(
            bucket=bucket,
            endpoint_url=self.server.https_url if https else self.server.endpoint_url,
            ca_bundle=self.server.ca_bundle if https else None,
            path_style=True,
        )

    def bucket(self, versioned: bool) -> str:
        assert self.server is not None
        if versioned not in self._buckets:
            self._buckets[versioned] = self.server.make_bucket(versioned=versioned)
        return self._buckets[versioned]

    def open(self, *, versioned: bool = False) -> AbstractAsyncContextManager[Store]:
        """Another client of this test's bucket."""
        if self.server is not None:
            config = self.config(self.bucket(versioned))
            return EngineClient(config) if self.name.endswith("engine") else S3Store(config)
        if versioned not in self._memory:
            self._memory[versioned] = MemoryStore(versioning="enabled" if versioned else "off")
        return self._memory[versioned].observer()

    def run(self, body: Body, *, versioned: bool = False) -> None:
        async def main() -> None:
            async with self.open(versioned=versioned) as store:
                if self.name == "given":
                    await self._learn(store, versioned)
                await body(store)

        trio.run(main)

    async def _learn(self, store: Store, versioned: bool) -> None:
        """A mount knows what a server honours, and does not believe checksums that nobody verifies."""
        found = await store.probe(PROBED, known=_found.get(versioned))
        _found[versioned] = found

    def suspend(self) -> None:
        """Let this test's bucket with versions keep no more of them."""
        if self.server is None:
            self._memory[True].suspend()
            return
        self.server.boto3_client().put_bucket_versioning(
            Bucket=self.bucket(True), VersioningConfiguration={"Status": "Suspended"}
        )

    def enable(self) -> None:
        """Let this test's bucket without versions keep them from now on."""
        if self.server is None:
            self._memory[True] = self._memory.pop(False)
            self._memory[True].enable()
            return
        self._buckets[True] = self._buckets.pop(False)
        self.server.boto3_client().put_bucket_versioning(
            Bucket=self.bucket(True), VersioningConfiguration={"Status": "Enabled"}
        )

    def enable_acls(self) -> None:
        """Let this test's bucket heed ACLs; some have them always."""
        if self.server is not None:
            self.server.enable_acls(self.bucket(False))

    def close(self) -> None:
        if self.server is not None and self.server.lasting:
            for bucket in self._buckets.values():
                self.server.remove_bucket(bucket)


def set_credentials(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    """Give boto3 in this process the server's credentials, and nothing of the user's."""
    wanted = server.environment()
    for name in [name for name in os.environ if name.startswith("AWS_") and name not in wanted]:
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        if name.startswith("AWS_") and name != "AWS_CA_BUNDLE":
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
