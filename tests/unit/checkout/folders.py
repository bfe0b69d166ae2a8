"""Buckets in memory and folders on disk, for checkouts in this process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import trio

from s3mount.app.checkout import stored_in
from s3mount.checkout.checkout import check_out
from s3mount.checkout.options import Changed, Options
from s3mount.checkout.summary import Summary
from s3mount.manifest.model import Entry
from s3mount.refs import ObjectHeaders
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore


class World:
    """Buckets that keep versions, one folder, and how it is checked out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "target"
        self.cache_dir = folder / "cache"
        self.stores: dict[str, MemoryStore] = {}
        self.opened: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.warned: list[str] = []
        self.warn: Callable[[str], None] = lambda line: None
        """Called with what a person is warned of, at that moment."""
        self.is_known = False
        """Whether the manifest may be known by its digest, so that it need not be read."""
        self.read = 0

    def store(self, bucket: str = "memory") -> MemoryStore:
        if bucket not in self.stores:
            self.stores[bucket] = MemoryStore(bucket, versioning="enabled", part_bytes_min=1)
        return self.stores[bucket]

    def put(
        self, key: str, data: bytes, bucket: str = "memory", headers: ObjectHeaders | None = None
    ) -> Entry:
        """Write a version; what a manifest says of it."""
        store = self.store(bucket).observer()

        async def write() -> Entry:
            result = await store.put(key, data, headers or ObjectHeaders())
            info = await store.head(key, version_id=result.version_id)
            return Entry(
                bucket, key, result.version_id, info.size, info.etag, info.last_modified_ns
            )

        return trio.run(write)

    def put_parts(self, key: str, data: bytes, part_bytes: int) -> Entry:
        """The same by a multipart upload."""
        store = self.store().observer()

        async def write() -> Entry:
            upload_id = await store.create_multipart(key, ObjectHeaders())
            parts = [
                await store.upload_part(key, upload_id, number, data[start : start + part_bytes])
                for number, start in enumerate(range(0, len(data), part_bytes), 1)
            ]
            result = await store.complete_multipart(key, upload_id, parts)
            return Entry("memory", key, result.version_id, len(data), result.etag)

        return trio.run(write)

    def alter(self, entry: Entry, data: bytes | None = None, **told: object) -> None:
        """Let the store hold other bytes for a version, or tell something else of it."""
        history = self.store(entry.bucket)._bucket.versions[entry.key]
        for place, version in enumerate(history):
            if version.info.version_id == entry.version_id:
                info = msgspec.structs.replace(version.info, **told)
                history[place] = type(version)(
                    info, version.data if data is None else data, version.part_lengths
                )

    def _open(self, bucket: str) -> AbstractAsyncContextManager[Store]:
        self.opened.append(bucket)
        return self.store(bucket)

    def check_out(
        self,
        entries: Iterable[Entry],
        *,
        delete: bool = False,
        is_rehearsal: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        accept_unproven: bool = False,
        changed: Changed = Changed.ASIDE,
    ) -> Summary:
        """Check out into the folder."""
        self.told.clear()
        self.warned.clear()
        self.opened.clear()
        held = list(entries)
        self.read = 0

        def read() -> Iterable[Entry]:
            self.read += 1
            return held

        identity = hashlib.sha256(msgspec.msgpack.encode(held)).hexdigest()
        return check_out(
            read,
            identity if self.is_known else None,
            self.folder,
            Options(
                cache_dir=self.cache_dir,
                delete=delete,
                is_rehearsal=is_rehearsal,
                include=tuple(include),
                exclude=tuple(exclude),
                accept_unproven=accept_unproven,
                changed=changed,
            ),
            open_store=self._open,
            stored_in=stored_in,
            watch=lambda progress: None,
            tell=lambda action, path, size: self.told.append((action, path)),
            warn=self._hear,
        )

    def _hear(self, line: str) -> None:
        self.warned.append(line)
        self.warn(line)

    def requests(self) -> int:
        """Requests so far that a checkout made."""
        return sum(sum(store.requests.values()) for store in self.stores.values())

    def files(self) -> dict[str, bytes]:
        """Everything in the folder: files' bytes, links as ``-> target``, empty folders by a slash."""
        found: dict[str, bytes] = {}
        for top, folders, names in os.walk(self.folder):
            below = Path(top).relative_to(self.folder).as_posix()
            prefix = "" if below == "." else f"{below}/"
            for name in [*names, *(n for n in folders if os.path.islink(os.path.join(top, n)))]:
                path = os.path.join(top, name)
                if os.path.islink(path):
                    found[prefix + name] = b"-> " + os.fsencode(os.readlink(path))
                else:
                    found[prefix + name] = Path(path).read_bytes()
            if not names and not folders and prefix:
                found[prefix] = b""
        return found


def without_etag(entry: Entry) -> Entry:
    """As a manifest of two columns has it."""
    return Entry(entry.bucket, entry.key, entry.version_id)


def with_etag(entry: Entry, etag: str) -> Entry:
    """The entry with another ETag."""
    return msgspec.structs.replace(entry, etag=etag)
