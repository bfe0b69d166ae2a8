"""The tree of a past: nodes made from a catalog when they are asked for, and forgotten again.

Nothing here depends on how much the kernel remembers: a node can be made anew from its number at any
time, and always is the same. What is held in memory are a few thousand of them.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from typing import Literal

import msgspec

from s3mount.manifest.catalog import MARKED, ROOT, Catalog, Row
from s3mount.names import OWN_NAME
from s3mount.refs import Attributes, ContentRef, Key, ObjectHeaders, ObjectInfo, VersionId
from s3mount.tree import attributes as codec

FOLDERS_MAX = 10_000
"""Directories whose path is held in memory: a few MiB."""


class Defaults(msgspec.Struct, frozen=True):
    """Attributes of what carries none, and whether stored ones are asked for. ``date_ns``: what has no date."""

    file_mode: int
    dir_mode: int
    uid: int
    gid: int
    date_ns: int
    attributes: Literal["auto", "always", "never"] = "auto"


class Folder(msgspec.Struct, frozen=True):
    """Where a directory lies: ``prefix`` is empty or ends with ``/``; ``bucket`` is empty above the buckets."""

    bucket: str
    prefix: Key
    is_top: bool


class SnapshotNode(msgspec.Struct, frozen=True):
    """One file or directory of the past. ``key`` is its object's (a directory's with its ``/``).

    ``size`` is ``None`` where neither the manifest nor S3 told it yet; ``info`` is what S3 told.
    """

    row: Row
    bucket: str
    key: Key
    attributes: Attributes
    size: int | None
    info: ObjectInfo | None

    @property
    def is_directory(self) -> bool:
        """Is it a directory?"""
        return self.row.is_directory

    @property
    def headers(self) -> ObjectHeaders | None:
        """What is stored with its object beside the bytes, if S3 was asked."""
        return self.info.headers if self.info is not None else None

    @property
    def version_id(self) -> VersionId | None:
        """The version that is shown; ``None`` where none is known."""
        if self.row.version_id is None and self.info is not None:
            return self.info.version_id
        return self.row.version_id

    @property
    def content(self) -> ContentRef | None:
        """Exactly the bytes that are shown; ``None`` until size and ETag are known."""
        etag = self.row.etag or (self.info.etag if self.info is not None else "")
        if self.size is None or not etag:
            return None
        return ContentRef(self.key, etag, self.size, self.version_id)


class SnapshotTree:
    """Nodes of one catalog. ``prefix`` is what the keys of a catalog's bucket begin with, beside their paths."""

    def __init__(self, catalog: Catalog, defaults: Defaults, *, prefix: Key = "") -> None:
        self.catalog = catalog
        self._defaults = defaults
        self._prefix = prefix
        self._folders: OrderedDict[int, Folder] = OrderedDict()
        self._storing: OrderedDict[int, bool] = OrderedDict()
        buckets = catalog.page(ROOT, "", 2)
        self.is_of_buckets = len(buckets) != 1
        self.top = ROOT if self.is_of_buckets else buckets[0].number

    def node(self, number: int) -> SnapshotNode | None:
        """The node with this number. Raises LocalDiskError."""
        row = self.catalog.row(number)
        return None if row is None else self.node_of(row)

    def node_of(self, row: Row) -> SnapshotNode:
        """The node that a row describes."""
        info = self.catalog.info_of(row)
        if row.is_directory:
            folder = self.folder(row.number)
            return SnapshotNode(
                row, folder.bucket, folder.prefix, self._attributes(row, info), 0, info
            )
        folder = self.folder(row.parent)
        size = info.size if row.size is None and info is not None else row.size
        key = folder.prefix + row.name
        return SnapshotNode(row, folder.bucket, key, self._attributes(row, info), size, info)

    def folder(self, number: int) -> Folder:
        """Where the directory with this number lies. Raises LocalDiskError."""
        found = self._folders.get(number)
        if found is not None:
            self._folders.move_to_end(number)
            return found
        if number == ROOT:
            found = Folder("", "", True)
        else:
            row = self.catalog.row(number)
            above = self.folder(row.parent) if row is not None else Folder("", "", True)
            name = row.name if row is not None else ""
            if not above.bucket:
                found = Folder(name, self._prefix, True)
            else:
                found = Folder(above.bucket, f"{above.prefix}{name}/", False)
        self._folders[number] = found
        if len(self._folders) > FOLDERS_MAX:
            self._folders.popitem(last=False)
        return found

    def is_hidden(self, row: Row) -> bool:
        """Is it the name at a bucket's top that is our own?"""
        return row.name == OWN_NAME and self.folder(row.parent).is_top and row.parent != ROOT

    # --------------------------------------------------------------- attributes

    def marker_of(self, directory: Row) -> Row | None:
        """The row whose object tells about a directory and what lies in it; ``None``: there is none."""
        if directory.number == ROOT:
            return None
        if directory.kind == MARKED:
            return directory
        if not self.folder(directory.number).is_top or self._prefix:
            return None
        own = self.catalog.child(directory.number, OWN_NAME)
        return own if own is not None and own.kind == MARKED else None

    def has_attributes(self, directory: Row) -> bool:
        """May a directory's own object tell its attributes, which the manifest does not?"""
        is_told = directory.mode is not None or self._defaults.attributes == "never"
        return directory.kind == MARKED and not is_told

    def note_storing(self, number: int, is_storing: bool) -> None:
        """Do the objects in this directory carry attributes?"""
        self._storing[number] = is_storing
        if len(self._storing) > FOLDERS_MAX:
            self._storing.popitem(last=False)

    def is_storing(self, number: int) -> bool | None:
        """Do the objects in this directory carry attributes? ``None``: its marker has to be asked."""
        if self._defaults.attributes != "auto":
            return self._defaults.attributes == "always"
        known = self._storing.get(number)
        if known is not None:
            return known
        directory = self.catalog.row(number)
        marker = self.marker_of(directory) if directory is not None else None
        if marker is None:
            self.note_storing(number, False)
            return False
        info = self.catalog.info_of(marker)
        if info is None or info.headers is None:
            return None
        known = codec.are_stored(info.headers)
        self.note_storing(number, known)
        return known

    def _attributes(self, row: Row, info: ObjectInfo | None) -> Attributes:
        defaults = self._defaults
        date_ns = row.last_modified_ns or (info.last_modified_ns if info is not None else 0)
        date_ns = date_ns or defaults.date_ns
        if row.is_directory:
            mode = stat.S_IFDIR | defaults.dir_mode
            if info is None:
                marker = self.marker_of(row)
                info = self.catalog.info_of(marker) if marker is not None else None
        else:
            mode = stat.S_IFREG | defaults.file_mode
        found = Attributes(mode, defaults.uid, defaults.gid, date_ns, date_ns, date_ns)
        if info is not None and info.headers is not None and defaults.attributes != "never":
            found = codec.decode(info.headers, found)
        if row.mode is not None:
            kind = stat.S_IFMT(row.mode)
            if not kind or row.is_directory or kind == stat.S_IFDIR:
                kind = stat.S_IFMT(mode)
            found = msgspec.structs.replace(found, mode=kind | stat.S_IMODE(row.mode))
        if row.mtime_ns is not None:
            found = msgspec.structs.replace(
                found, mtime_ns=row.mtime_ns, ctime_ns=row.mtime_ns, atime_ns=row.mtime_ns
            )
        return found
