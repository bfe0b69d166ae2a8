"""What S3 lists directly below a prefix, as names a directory can show."""

from __future__ import annotations

from dataclasses import dataclass, field

from s3mount.refs import Key, ObjectInfo
from s3mount.s3.store import Store
from s3mount.tree.names import is_name


@dataclass(slots=True)
class Listing:
    """One directory as S3 has it.

    ``files`` and ``directories`` are keyed by name; a name that is both counts as a directory, and its
    object is in ``ignored`` along with every key that can be no path. ``marker`` is the directory's own object.
    """

    files: dict[str, ObjectInfo] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    marker: ObjectInfo | None = None
    ignored: list[Key] = field(default_factory=list)
    pages: int = 0

    def drop_shadowed(self) -> None:
        """Of a name that is both, only the directory is shown."""
        for name in self.directories & self.files.keys():
            self.ignored.append(self.files.pop(name).key)


async def list_directory(store: Store, prefix: Key) -> Listing:
    """List everything directly below ``prefix`` (empty, or ending with ``/``). Raises StoreError."""
    listing = Listing()
    token = None
    start = len(prefix)
    while True:
        page = await store.list_page(prefix, delimiter="/", token=token)
        listing.pages += 1
        for common in page.prefixes:
            name = common[start:-1]
            if is_name(name):
                listing.directories.add(name)
            else:
                listing.ignored.append(common)
        for info in page.objects:
            name = info.key[start:]
            if not name:
                listing.marker = info
            elif is_name(name):
                listing.files[name] = info
            else:
                listing.ignored.append(info.key)
        token = page.next_token
        if token is None:
            break
    listing.drop_shadowed()
    return listing


async def list_subtree(store: Store, prefix: Key) -> list[ObjectInfo]:
    """Every object whose key begins with ``prefix``, however deep. Raises StoreError."""
    found: list[ObjectInfo] = []
    token = None
    while True:
        page = await store.list_page(prefix, token=token)
        found.extend(page.objects)
        token = page.next_token
        if token is None:
            return found


async def is_empty(store: Store, prefix: Key, gone: set[Key]) -> bool:
    """Is there no object below ``prefix`` but its marker and those in ``gone``? Raises StoreError."""
    token = None
    while True:
        page = await store.list_page(prefix, token=token)
        if any(info.key != prefix and info.key not in gone for info in page.objects):
            return False
        token = page.next_token
        if token is None:
            return True
