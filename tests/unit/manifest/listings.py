"""A bucket's list of versions that is made as it is asked for, however long it is."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import trio

from s3mount.refs import ObjectVersion, VersionPage
from s3mount.testing.memory_store import MemoryStore


class GeneratedStore(MemoryStore):
    """``keys`` in the order of UTF-8, each with ``versions_of(key)``, the newest first."""

    def __init__(
        self,
        keys: Sequence[str],
        versions_of: Callable[[str], Sequence[ObjectVersion]],
        *,
        delay_s: float = 0.0,
        page_max: int = 1000,
    ) -> None:
        super().__init__(versioning="enabled")
        self.keys = keys
        self.versions_of = versions_of
        self.delay_s = delay_s
        self.page_max = page_max
        self.asked = 0
        self.asked_at_once = self.asked_at_once_max = 0

    async def list_versions_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        key_marker: str | None = None,
        version_marker: str | None = None,
        max_keys: int = 1000,
    ) -> VersionPage:
        assert delimiter is None
        self.asked += 1
        self.asked_at_once += 1
        self.asked_at_once_max = max(self.asked_at_once, self.asked_at_once_max)
        try:
            await trio.sleep(self.delay_s)
        finally:
            self.asked_at_once -= 1
        max_keys = min(max_keys, self.page_max)
        index = bisect.bisect_left(self.keys, prefix)
        if key_marker is not None:
            find = bisect.bisect_right if version_marker is None else bisect.bisect_left
            index = max(index, find(self.keys, key_marker))
        found: list[ObjectVersion] = []
        while index < len(self.keys) and self.keys[index].startswith(prefix):
            key = self.keys[index]
            entries = list(self.versions_of(key))
            if key == key_marker:
                ids = [entry.version_id for entry in entries]
                entries = entries[ids.index(version_marker or "") + 1 :]
            room = max_keys - len(found)
            if len(entries) > room:
                found += entries[:room]
                return VersionPage(tuple(found), (), found[-1].key, found[-1].version_id)
            found += entries
            index += 1
        return VersionPage(tuple(found), (), None, None)


def version(
    key: str, number: int = 0, at_ns: int = 0, *, is_deletion: bool = False
) -> ObjectVersion:
    """One of a key's versions."""
    return ObjectVersion(key, f"v{number}", number == 0, is_deletion, number, "e", at_ns)
