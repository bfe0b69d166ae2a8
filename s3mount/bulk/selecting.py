"""From what was named to a stream of items, in the order of their names and in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import BinaryIO, TypeAlias, TypeVar

import msgspec
import trio

from s3mount.bulk.location import S3Location
from s3mount.errors import NoSuchKeyError, SourceError, UsageError
from s3mount.manifest.external_sort import Runs, entry_order
from s3mount.manifest.model import Entry
from s3mount.manifest.spill_file import Spill
from s3mount.manifest.versions.key_pages import ObjectPages, VersionPages
from s3mount.manifest.versions.version_scan import Scan
from s3mount.patterns import PathFilter
from s3mount.refs import ContentRef, ObjectInfo, ObjectVersion
from s3mount.s3.store import Store
from s3mount.tasks import first_error

BATCH_ITEMS = 1000
T = TypeVar("T")


class Item(msgspec.Struct, frozen=True, gc=False):
    """One object, version, folder of a list or local file.

    ``url`` is as users write it, ``name`` what it is called from where the listing began. ``key`` is empty of a
    local file, whose path is ``url``. ``size`` is ``None`` where nobody asked yet. ``ctime_ns`` is a local file's.
    """

    url: str
    name: str
    size: int | None = None
    modified_ns: int = 0
    key: str = ""
    etag: str = ""
    version_id: str | None = None
    storage_class: str | None = None
    is_latest: bool = True
    is_delete_marker: bool = False
    is_folder: bool = False
    ctime_ns: int = 0

    @property
    def ref(self) -> ContentRef:
        """The bytes of an object whose size is known."""
        assert self.size is not None
        return ContentRef(self.key, self.etag, self.size, self.version_id)


Send: TypeAlias = Callable[[list[Item]], Awaitable[None]]
"""Takes items, in order; nothing more is listed than fits into memory while it waits."""
Refuse: TypeAlias = Callable[[str, str], None]
"""Is told of a path that cannot be read, and why."""


ALL_NAMES = PathFilter()
"""Takes all."""


@asynccontextmanager
async def streamed(
    produce: Callable[[Callable[[T], Awaitable[None]]], Awaitable[None]],
) -> AsyncIterator[trio.MemoryReceiveChannel[T]]:
    """What ``produce`` sends, as it is asked for: one ahead. Raises what it raises; ended with the block."""
    send, receive = trio.open_memory_channel[T](1)

    async def run() -> None:
        await produce(send.send)
        # Not after an error, which would look like the end, and then be lost.
        send.close()

    # Closed last: who sends to a closed one fails.
    with send, receive, first_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield receive
            nursery.cancel_scope.cancel()


async def objects(
    store: Store,
    location: S3Location,
    send: Send,
    *,
    takes: PathFilter = ALL_NAMES,
    with_versions: bool = False,
    delimiter: str | None = None,
) -> None:
    """What a folder or a pattern names, listed in parallel; all versions and delete markers ``with_versions``.

    With ``delimiter`` a folder's own objects, and its folders as items. S3 Express lists in no order. Raises
    StoreError, LocalDiskError.
    """
    base = len(location.base)
    last_folder = ""

    async def take(rows: Sequence[ObjectInfo | ObjectVersion]) -> None:
        nonlocal last_folder
        batch = []
        for row in rows:
            if not location.matches(row.key) or not takes(row.key[base:] or "/"):
                continue
            if delimiter is not None and not row.last_modified_ns:
                if row.key == last_folder:
                    continue
                last_folder = row.key
            batch.append(_item(location, base, row))
        if batch:
            await send(batch)

    prefix = location.beginning
    if location.with_below:
        # Not as one list: what begins with the name alone may be much.
        await take(await _named_exactly(store, location.key, with_versions=with_versions))
        prefix += "/"
    if with_versions:
        await Scan(VersionPages(store, prefix)).run(take)
    else:
        await Scan(ObjectPages(store, prefix, delimiter=delimiter)).run(take)


def _item(location: S3Location, base: int, row: ObjectInfo | ObjectVersion) -> Item:
    return Item(
        url=f"s3://{location.bucket}/{row.key}",
        name=row.key[base:],
        size=row.size,
        modified_ns=row.last_modified_ns,
        key=row.key,
        etag=row.etag,
        version_id=row.version_id,
        storage_class=row.storage_class,
        is_latest=not isinstance(row, ObjectVersion) or row.is_latest,
        is_delete_marker=isinstance(row, ObjectVersion) and row.is_delete_marker,
        is_folder=not row.last_modified_ns,
    )


async def _named_exactly(
    store: Store, key: str, *, with_versions: bool
) -> Sequence[ObjectInfo | ObjectVersion]:
    """What lies at a key itself, by a list: the first that begins with it, or all its versions."""
    if not with_versions:
        page = await store.list_page(key, max_keys=1)
        return [info for info in page.objects if info.key == key]
    pages = VersionPages(store, key)
    found: list[ObjectVersion] = []
    cursor = None
    while True:
        rows = await pages.page(None, cursor)
        found += [row for row in rows.rows if row.key == key]
        cursor = rows.cursor
        if cursor is None or any(row.key != key for row in rows.rows):
            return found


async def object_and_folder(store: Store, location: S3Location, send: Send) -> None:
    """What a key names: its object and its folder, whichever are there. Raises StoreError."""
    found = list(await _named_exactly(store, location.key, with_versions=False))
    below = await store.list_page(f"{location.key}/", max_keys=1)
    if below.objects:
        found.append(ObjectInfo(f"{location.key}/", 0, "", 0))
    await send([_item(location, len(location.base), row) for row in found])


async def versions_of_key(store: Store, location: S3Location, send: Send) -> None:
    """All versions and delete markers of one key, the newest first. Raises StoreError."""
    found = await _named_exactly(store, location.key, with_versions=True)
    await send([_item(location, len(location.base), row) for row in found])


async def one_object(store: Store, location: S3Location, *, version_id: str | None = None) -> Item:
    """The object that a key names, with what HEAD tells. Raises SourceError where there is none, StoreError."""
    try:
        info = await store.head(location.key, version_id=version_id)
    except NoSuchKeyError as error:
        what = f"version {version_id} of {location.url}" if version_id else location.url
        raise SourceError(f"{what} is not there{_folder_hint(location)}") from error
    return Item(
        url=location.url,
        name=location.key.rpartition("/")[2],
        size=info.size,
        modified_ns=info.last_modified_ns,
        key=info.key,
        etag=info.etag,
        version_id=info.version_id,
        storage_class=info.storage_class,
    )


def _folder_hint(location: S3Location) -> str:
    return "" if location.key.endswith("/") else "; a folder needs -r, or a slash at its end"


async def named_objects(location: S3Location, names: Iterator[str], send: Send) -> None:
    """The objects of these names in a folder; nobody is asked whether they are there."""
    if not location.is_folder:
        raise UsageError(f"--files-from names what lies in a folder: {location.url}/")
    batch_of = partial(_batch, names)
    while batch := await trio.to_thread.run_sync(batch_of):
        places = [(name, location.at(name)) for name in batch]
        await send([Item(url=at.url, name=name, key=at.key) for name, at in places])


def _batch(items: Iterator[T]) -> list[T]:
    return list(itertools.islice(items, BATCH_ITEMS))


async def local_files(items: Iterator[Item], send: Send) -> None:
    """What ``walk`` finds, looked for in a thread."""
    while batch := await trio.to_thread.run_sync(_batch, items):
        await send(batch)


def file_item(path: str, name: str, about: os.stat_result) -> Item:
    """A local file."""
    return Item(path, name, about.st_size, about.st_mtime_ns, ctime_ns=about.st_ctime_ns)


def walk(
    folder: str,
    refuse: Refuse,
    *,
    takes: PathFilter = ALL_NAMES,
    follow_links: bool = True,
) -> Iterator[Item]:
    """Every file below ``folder``, in the order in which S3 lists their names. Blocks.

    Links are followed, to folders too, but not into a folder that they lie in. What is neither file nor folder,
    what cannot be read and what has no name in UTF-8 is told to ``refuse``. Raises SourceError for no folder.
    """
    try:
        top = os.stat(folder)
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}") from error
    if not stat.S_ISDIR(top.st_mode):
        raise SourceError(f"{folder}: it is no folder")
    stack = [("", (top.st_dev, top.st_ino), _names_in(folder, refuse, follow_links))]
    root = folder if folder.endswith("/") else f"{folder}/"
    try:
        while stack:
            below, _, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                continue
            found = below + name
            path = root + found
            if not (takes.enters(found) if name.endswith("/") else takes(found)):
                continue
            try:
                about = os.stat(path) if follow_links else os.lstat(path)
            except OSError as error:
                refuse(path, str(error.strerror))
                continue
            if stat.S_ISDIR(about.st_mode):
                me = (about.st_dev, about.st_ino)
                if any(me == each[1] for each in stack):
                    refuse(path.rstrip("/"), "it is a link to a folder that it lies in")
                    continue
                # Whatever is said of the folder itself: some of what lies in it may be included.
                stack.append((found, me, _names_in(path, refuse, follow_links)))
            elif stat.S_ISREG(about.st_mode):
                yield file_item(path, found, about)
            elif not stat.S_ISLNK(about.st_mode):
                refuse(path, "it is neither a file nor a folder")
    finally:
        for _, _, names in stack:
            names.close()


def _names_in(folder: str, refuse: Refuse, follow_links: bool) -> Generator[str, None, None]:
    """The names in a folder, those of folders with a slash at the end, sorted so; on the disk where they are many."""

    def entries() -> Iterator[Entry]:
        try:
            with os.scandir(folder or ".") as found:
                for each in found:
                    try:
                        each.name.encode()
                    except UnicodeEncodeError:
                        refuse(each.path, "its name is not UTF-8, as keys are")
                        continue
                    yield Entry(
                        "", f"{each.name}/" if _is_folder(each, follow_links) else each.name, None
                    )
        except OSError as error:
            refuse(folder, str(error.strerror))

    spill: Spill[Entry] = Spill(Entry)
    try:
        for entry in Runs.of(entries(), spill, entry_order).merged():
            yield entry.key
    finally:
        spill.close()


def _is_folder(entry: os.DirEntry[str], follow_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:
        return False


def file_names(source: str, *, is_nul_separated: bool) -> Iterator[str]:
    """The names that a file of ``--files-from`` holds, or standard input for ``-``; empty ones are left out.

    Blocks. Raises SourceError.
    """
    separator = b"\0" if is_nul_separated else b"\n"
    try:
        with contextlib.ExitStack() as stack:
            file: BinaryIO = sys.stdin.buffer
            if source != "-":
                file = stack.enter_context(open(source, "rb"))
            rest = b""
            while data := file.read(1 << 16):
                *whole, rest = (rest + data).split(separator)
                yield from _decoded(whole)
            yield from _decoded([rest])
    except OSError as error:
        raise SourceError(f"{source}: {error.strerror}") from error


def _decoded(names: list[bytes]) -> Iterator[str]:
    for name in names:
        plain = name.removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if plain:
            yield plain


def pattern_lines(path: str) -> list[str]:
    """The patterns of an ``--exclude-from`` file, as in a .gitignore: ``#`` begins a comment. Raises SourceError."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\n\r") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not valid UTF-8"
        raise SourceError(f"{path}: {why}") from error
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    return [line[1:] if line.startswith("\\#") else line.rstrip() for line in kept]
