"""What a path of a mount was, and bringing it back: its versions in S3, copied inside S3. Functions here block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from s3mount import tasks
from s3mount.app.manifests import Access, Restored, carry_out_all, list_to_file, plans_of
from s3mount.config import MountConfig
from s3mount.errors import UsageError
from s3mount.manifest.buckets import Buckets, open_buckets
from s3mount.manifest.formats.reading import read_entries
from s3mount.manifest.formats.writing import ManifestWriter, WholeFile
from s3mount.manifest.model import Entry
from s3mount.manifest.restoring import Plan, Step
from s3mount.manifest.times import format_time
from s3mount.refs import Key, ObjectVersion
from s3mount.s3.store import Store


class Dialog(NamedTuple):
    """How a person takes part: agrees to plans, hears of what fails, sees how far it is."""

    agree: Callable[[list[Plan]], bool]
    report: Callable[[Step, str], None]
    show: Callable[[str], None]


def undo(config: MountConfig, path: str, at_ns: int, dialog: Dialog) -> dict[Key, Restored]:
    """Bring ``path``, relative to the mount, back to what it was at ``at_ns``; what came of its keys.

    What a folder has now and had not then gets a delete marker. Nothing is destroyed: what is there now stays as
    older versions. Repeatable. Raises S3MountError: UsageError where nothing was there then, or ever, or the
    bucket keeps no versions.
    """

    async def main() -> dict[Key, Restored]:
        done = {}
        async with open_buckets(Access(config.store).open_store) as buckets:
            for key in await _keys_of(await buckets.of(config.store.bucket), config, path):
                restored = await _undo_key(config, buckets, key, at_ns, dialog)
                if restored is not None:
                    done[key] = restored
        if not done:
            raise UsageError(
                f"nothing was at {path or config.mountpoint} at {format_time(at_ns)}; s3mount history tells of "
                "the versions of a file"
            )
        return done

    return tasks.run(main)


def history(config: MountConfig, path: str) -> list[ObjectVersion]:
    """All versions and delete markers of a file, the newest first. Raises UsageError for a folder, StoreError."""

    async def main() -> list[ObjectVersion]:
        async with Access(config.store).open_store(config.store.bucket) as store:
            keys = await _keys_of(store, config, path)
            if keys[0].endswith("/") or not path:
                raise UsageError(f"{path or config.mountpoint} is a folder: name a file in it")
            return await _versions_of(store, keys[0])

    return tasks.run(main)


async def _keys_of(store: Store, config: MountConfig, path: str) -> list[Key]:
    """What a path is or was in S3: a file's key, a folder's with its ``/``, or both. Raises UsageError, StoreError."""
    key = f"{config.prefix}{path}"
    about = await store.check_bucket(config.prefix)
    if about.versioning == "off":
        raise UsageError(
            f"the bucket {about.name!r} keeps no versions, so nothing has a past in it"
        )
    if not path:
        return [key]
    found = []
    for each in (key, f"{key}/"):
        page = await store.list_versions_page(each, max_keys=1)
        if any(version.key == each or each.endswith("/") for version in page.versions):
            found.append(each)
    if not found:
        raise UsageError(f"nothing is or was at s3://{about.name}/{key}: mind the spelling")
    return found


async def _undo_key(
    config: MountConfig, buckets: Buckets[str, Store], key: Key, at_ns: int, dialog: Dialog
) -> Restored | None:
    """One key, or all below a folder's; ``None`` where nothing was there then. Raises S3MountError."""
    bucket = config.store.bucket
    is_folder = not key or key.endswith("/")
    with tempfile.TemporaryDirectory(prefix="s3mount-") as name:
        source = Path(name) / "listed.csv"
        store = await buckets.of(bucket)
        await list_to_file(store, bucket, key, at_ns, source, "csv", dialog.show)
        if not is_folder:
            # The key may be the beginning of others.
            source = _only(source, key, Path(name) / "one.csv")
        if next(_entries(source), None) is None:
            return None
        prefix = key if is_folder else None
        plans = await plans_of(
            None, str(source), source, prefix, buckets, dialog.show, deletes=is_folder
        )
        try:
            return await carry_out_all(plans, buckets, *dialog)
        finally:
            for plan in plans:
                plan.close()


def _entries(path: Path) -> Iterator[Entry]:
    return read_entries(path, bucket=None)


def _only(listed: Path, key: Key, path: Path) -> Path:
    with WholeFile(path) as file:
        writer = ManifestWriter(file)
        writer.write([entry for entry in _entries(listed) if entry.key == key])
        writer.finish()
    return path


async def _versions_of(store: Store, key: Key) -> list[ObjectVersion]:
    found: list[ObjectVersion] = []
    key_marker = version_marker = None
    while True:
        page = await store.list_versions_page(
            key, key_marker=key_marker, version_marker=version_marker
        )
        found.extend(each for each in page.versions if each.key == key)
        key_marker, version_marker = page.next_key_marker, page.next_version_marker
        if key_marker is None or key_marker > key:
            return found
