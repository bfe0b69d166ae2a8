"""Where manifests lie: in a local file, in S3, or on standard input and output."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import trio

from s3mount.config import MIB
from s3mount.errors import ManifestError, NoSuchKeyError, UsageError
from s3mount.manifest.formats import inventory
from s3mount.refs import Key, ObjectHeaders
from s3mount.s3.store import Store
from s3mount.transfer.download import download_file
from s3mount.transfer.fetching import Fetching, Wanted
from s3mount.transfer.upload import upload_file

OpenStore: TypeAlias = Callable[[str], AbstractAsyncContextManager[Store]]
"""Opens the store of a bucket, by its name."""

REQUESTS_AT_ONCE = 16
PART_BYTES = 16 * MIB


def is_in_s3(text: str) -> bool:
    """Does it begin with ``s3://``?"""
    return text.startswith("s3://")


def parse_s3(text: str) -> tuple[str, Key]:
    """Bucket and key of ``s3://BUCKET/KEY``; the key may be empty. Raises UsageError."""
    bucket, _, key = text.removeprefix("s3://").partition("/")
    if not bucket:
        raise UsageError(f"{text!r} names no bucket: s3://BUCKET/KEY")
    return bucket, key


@asynccontextmanager
async def brought_here(text: str, open_store: OpenStore) -> AsyncIterator[Path]:
    """The manifest that ``text`` names as a local file: itself, or a copy that is gone afterwards.

    ``-`` is standard input. Of an inventory in S3 the data files come along. Raises ManifestError,
    LocalDiskError and the store's errors.
    """
    if text != "-" and not is_in_s3(text):
        path = Path(text).expanduser()
        if path.is_dir():
            path = path / "manifest.json"
        if not is_pipe(path):
            await trio.lowlevel.checkpoint()
            yield path
            return
    folder = Path(await trio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="s3mount-")))
    try:
        if text == "-":
            yield await _kept(None, folder / "standard input")
        elif not is_in_s3(text):
            yield await _kept(path, folder / "pipe")
        else:
            yield await _from_s3(text, open_store, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_pipe(path: Path) -> bool:
    """Can it be read only once: a pipe, a FIFO, a terminal, a socket?"""
    return path.exists() and not path.is_file() and not path.is_dir()


async def _kept(pipe: Path | None, path: Path) -> Path:
    """What ``pipe``, or standard input, holds as the file ``path``. Raises ManifestError."""
    name = "standard input" if pipe is None else str(pipe)

    def copy() -> None:
        with contextlib.ExitStack() as stack:
            source: BinaryIO = sys.stdin.buffer
            if pipe is not None:
                source = stack.enter_context(open(pipe, "rb"))
            with open(path, "wb") as file:
                shutil.copyfileobj(source, file)

    try:
        await trio.to_thread.run_sync(copy, abandon_on_cancel=True)
    except OSError as error:
        raise ManifestError(f"{name} cannot be kept: {error.strerror}") from error
    return path


async def _from_s3(text: str, open_store: OpenStore, folder: Path) -> Path:
    bucket, key = parse_s3(text)
    if not key or key.endswith("/"):
        raise UsageError(
            f"{text} is no manifest but a bucket or folder: name the object, such as "
            f"{text.rstrip('/')}/manifest.json, or a time with --at where the command knows that"
        )
    path = folder / key.rsplit("/", 1)[-1]
    slots = trio.CapacityLimiter(REQUESTS_AT_ONCE)
    async with open_store(bucket) as store:
        await _download(store, bucket, key, path, slots)
        for file in _data_files(path):
            place = folder / "data" / inventory.local_name(file)
            place.parent.mkdir(exist_ok=True)
            await _download(store, bucket, file.key, place, slots)
    return path


def _data_files(path: Path) -> Sequence[inventory.DataFile]:
    """Those of the inventory that a local file is; none where it is none."""
    found = None
    if path.stat().st_size <= inventory.JSON_BYTES_MAX and path.name.endswith(".json"):
        found = inventory.parse(path.read_bytes())
    return found.files if found is not None else ()


def keys_at(text: str, path: Path) -> tuple[str, list[Key]]:
    """The bucket that a manifest in S3 lies in, and the keys of all that it consists of.

    ``path`` is its local copy. Raises UsageError.
    """
    bucket, key = parse_s3(text)
    beside = f"{key.rpartition('/')[0]}/manifest.checksum".lstrip("/")
    files = [file.key for file in _data_files(path)]
    return bucket, [key, *files, beside] if files else [key]


async def _download(
    store: Store, bucket: str, key: Key, path: Path, slots: trio.CapacityLimiter
) -> None:
    try:
        await download_file(Fetching(lambda n: None, slots=slots), store, Wanted(key), str(path))
    except NoSuchKeyError as error:
        raise ManifestError(f"s3://{bucket}/{key} does not exist") from error


@asynccontextmanager
async def to_be_filled(text: str, open_store: OpenStore) -> AsyncIterator[Path]:
    """A local file to write a manifest for ``text`` to; it goes there when the block ends well.

    ``-`` is standard output. A local file is the same one, so that it must be written whole by the
    caller. Raises as ``brought_here``.
    """
    if text != "-" and not is_in_s3(text):
        await trio.lowlevel.checkpoint()
        yield Path(text).expanduser()
        return
    descriptor, name = tempfile.mkstemp(prefix="s3mount-")
    os.close(descriptor)
    try:
        yield Path(name)
        if text == "-":
            await trio.to_thread.run_sync(_to_standard_output, name)
        else:
            bucket, key = parse_s3(text)
            async with open_store(bucket) as store:
                await _upload(store, key, name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _to_standard_output(name: str) -> None:
    with open(name, "rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


async def _upload(store: Store, key: Key, name: str) -> None:
    content_type = "text/csv; charset=utf-8"
    with open(name, "rb") as file:
        if file.read(4) == b"PAR1":
            content_type = "application/vnd.apache.parquet"
    await upload_file(
        store,
        name,
        os.path.getsize(name),
        key,
        ObjectHeaders(content_type=content_type),
        part_bytes=PART_BYTES,
        slots=trio.CapacityLimiter(REQUESTS_AT_ONCE),
    )


def is_live_bucket(text: str) -> bool:
    """Does ``text`` name what a bucket holds now, and no manifest: ``s3://BUCKET`` or ``s3://BUCKET/PREFIX/``?"""
    if not is_in_s3(text):
        return False
    _, key = parse_s3(text)
    return not key or key.endswith("/")
