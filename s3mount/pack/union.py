"""What all packs of one folder say together: which keys they have, as a store would tell of them."""

from __future__ import annotations

import stat
import urllib.parse
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from s3mount.names import OWN_NAME
from s3mount.pack.entry import Entry
from s3mount.pack.finding import Loaded, order_of
from s3mount.refs import ContentRef, ETag, Key, ObjectHeaders, ObjectInfo

ETAG_START = "pack-"
FOLDER_ETAG = f"{ETAG_START}folder"
LAST = "\U0010ffff"
"""Sorts behind all that a key goes on with."""


def is_member_etag(etag: ETag | None) -> bool:
    """Is it the ETag of a member of a pack, which no object has?"""
    return etag is not None and etag.startswith(ETAG_START)


class Member(NamedTuple):
    """One key that packs have. ``entry`` is ``None`` for a folder that only names below it tell of."""

    key: Key
    loaded: Loaded
    entry: Entry | None
    order: str

    @property
    def etag(self) -> ETag:
        """Made of the bytes where their digest is told, so that a move to another pack does not change it."""
        entry = self.entry
        if entry is None or entry.kind == "folder":
            return FOLDER_ETAG
        if entry.sha256:
            return ETAG_START + entry.sha256
        return f"{ETAG_START}{self.loaded.pack.tar.etag}-{entry.body}-{entry.size}"

    @property
    def size(self) -> int:
        """Of what is read of it."""
        return self.entry.size if self.entry is not None and self.entry.kind == "file" else 0

    @property
    def info(self) -> ObjectInfo:
        """As a HEAD would tell of it."""
        return ObjectInfo(
            self.key,
            self.size,
            self.etag,
            date_of(self.order),
            headers=_headers_of(self.entry, self.order),
            etag_is_md5=False,
            tag_count=0,
        )

    @property
    def listed(self) -> ObjectInfo:
        """As a list would."""
        return ObjectInfo(self.key, self.size, self.etag, date_of(self.order))

    @property
    def ref(self) -> ContentRef:
        """Its bytes, by the names that they have here."""
        return ContentRef(self.key, self.etag, self.size)


def date_of(order: str) -> int:
    """When a write with this place in the order was made, in nanoseconds since the epoch."""
    return int(order.partition("-")[0]) * 1_000_000


def _headers_of(entry: Entry | None, order: str) -> ObjectHeaders:
    if entry is None:
        # Tells whoever lists the folder that attributes are stored below.
        return ObjectHeaders({"mtime": str(date_of(order) // 10**9)})
    if entry.metadata is not None:
        return ObjectHeaders(entry.metadata, content_type=entry.type or None)
    metadata = {}
    if entry.kind == "link":
        metadata["symlink-target"] = urllib.parse.quote(entry.target)
    elif entry.permissions is not None:
        kind = stat.S_IFDIR if entry.kind == "folder" else stat.S_IFREG
        metadata["mode"] = str(kind | entry.permissions)
    if entry.mtime_ns is not None:
        metadata["mtime"] = entry.mtime
    elif entry.kind == "folder":
        metadata["mtime"] = str(date_of(order) // 10**9)
    return ObjectHeaders(metadata)


class Union:
    """All packs of the folder ``prefix``, merged. Nothing here awaits."""

    def __init__(self, prefix: Key) -> None:
        self.packs: dict[Key, Loaded] = {}
        self.last_ms = 0
        self._prefix = prefix
        self._winners: dict[Key, tuple[Loaded, int]] = {}
        self._former: dict[tuple[Key, ETag], Member] = {}
        self._folders: dict[Key, Member] = {}
        self._keys: list[Key] | None = None

    def add(self, loaded: Loaded) -> None:
        """One pack more, or the same again."""
        if loaded.pack.tar.key in self.packs:
            self.remove({loaded.pack.tar.key})
        self.packs[loaded.pack.tar.key] = loaded
        self._keys = None
        folder = loaded.folder
        for position, entry in enumerate(loaded.contents.entries):
            key = folder + entry.name
            other = self._winners.get(key)
            here = order_of(loaded, position)
            self.last_ms = max(self.last_ms, int(here[0].partition("-")[0]))
            later = other is None or order_of(*other) < here
            loser = other if later else (loaded, position)
            if later:
                self._winners[key] = (loaded, position)
            if loser is not None and (former := self._member(key, *loser)) is not None:
                self._former[former.key, former.etag] = former

    def remove(self, keys: set[Key]) -> None:
        """Packs that are there no more."""
        left = [loaded for key, loaded in self.packs.items() if key not in keys]
        self.packs, self._winners, self._former, self._keys = {}, {}, {}, None
        for loaded in left:
            self.add(loaded)

    def _member(self, key: Key, loaded: Loaded, position: int) -> Member | None:
        entry = loaded.contents.entries[position]
        if entry.deleted:
            return None
        if entry.kind == "folder":
            key += "/"
        return Member(key, loaded, entry, entry.order or loaded.contents.head.id)

    def find(self, key: Key) -> Member | None:
        """What the packs have under ``key`` now."""
        name = key.removesuffix("/")
        winner = self._winners.get(name)
        member = None if winner is None else self._member(name, *winner)
        if member is not None and member.key == key:
            return member
        if key.endswith("/"):
            self._sorted()
            return self._folders.get(key)
        return None

    def find_content(self, key: Key, etag: ETag) -> Member | None:
        """Those bytes of ``key``: what it has now, or what a pack still has of before."""
        member = self.find(key)
        if member is not None and member.etag == etag:
            return member
        return self._former.get((key, etag))

    def between(
        self, prefix: Key, delimiter: str | None, after: Key, upto: Key | None
    ) -> Iterator[Member | str]:
        """Members below ``prefix`` in the order of keys, behind ``after`` and not behind ``upto``.

        With a delimiter common prefixes stand for what is further down.
        """
        keys = self._sorted()
        at = max(bisect_left(keys, prefix), bisect_right(keys, after))
        while at < len(keys) and keys[at].startswith(prefix):
            key = keys[at]
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                common = key[: cut + 1]
                if upto is not None and common > upto:
                    return
                if common > after:
                    yield common
                at = bisect_right(keys, common + LAST, lo=at)
                continue
            if upto is not None and key > upto:
                return
            member = self.find(key)
            if member is not None:
                yield member
            at += 1

    def _sorted(self) -> list[Key]:
        """All keys, with the folders that they imply."""
        if self._keys is not None:
            return self._keys
        self._folders = {}
        keys: list[Key] = []
        for name, (loaded, position) in self._winners.items():
            member = self._member(name, loaded, position)
            if member is None:
                continue
            key = member.key
            keys.append(key)
            cut = key.rfind("/", 0, -1)
            while cut >= len(self._prefix) and key[: cut + 1] not in self._folders:
                self._folders[key[: cut + 1]] = Member(key[: cut + 1], loaded, None, member.order)
                cut = key.rfind("/", 0, cut)
            top = self._prefix or f"{OWN_NAME}/"
            self._folders.setdefault(top, Member(top, loaded, None, member.order))
        there = set(keys)
        self._folders = {key: each for key, each in self._folders.items() if key not in there}
        self._keys = sorted([*keys, *self._folders])
        return self._keys
