"""A manifest checked out into a folder: the store, the codec of attributes and the manifest's reader, wired."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from s3mount.checkout.checkout import check_out
from s3mount.checkout.options import Options, Tell
from s3mount.checkout.summary import Progress, Summary
from s3mount.config import StoreConfig

if TYPE_CHECKING:
    from s3mount.checkout.fetching import Stored
    from s3mount.manifest.location import OpenStore
    from s3mount.manifest.model import Entry
    from s3mount.refs import ObjectHeaders
    from s3mount.s3.store import Store

UNKNOWN_NS = -(1 << 62)


def check_out_manifest(
    manifest: str,
    bucket: str | None,
    folder: Path,
    store: StoreConfig,
    options: Options,
    *,
    watch: Callable[[Progress], None],
    tell: Tell,
    warn: Callable[[str], None],
    at_ns: int | None = None,
) -> Summary:
    """Make ``folder`` hold what ``manifest`` names: a file, ``-`` or ``s3://BUCKET/KEY``.

    With ``at_ns`` it is ``s3://BUCKET/PREFIX``, of which what was there then is taken. ``bucket`` is for
    manifests that name none.

    ``store`` says where S3 is; its bucket is filled in. Blocks. Raises as ``check_out``, and ManifestError.
    """

    def open_store(name: str) -> AbstractAsyncContextManager[Store]:
        from s3mount.s3.client import S3Store

        return S3Store(msgspec.structs.replace(store, bucket=name))

    with contextlib.ExitStack() as stack:
        path = _brought_here(manifest, open_store, stack, at_ns)

        def entries() -> Iterable[Entry]:
            from s3mount.manifest.formats.reading import read_entries

            return read_entries(path, bucket=bucket)

        return check_out(
            entries,
            _identity(path, bucket),
            folder,
            options,
            open_store=open_store,
            stored_in=stored_in,
            watch=watch,
            tell=tell,
            warn=warn,
        )


def _identity(path: Path, bucket: str | None) -> str | None:
    """Equal for equal bytes of a manifest; ``None`` for what cannot be read, which reading it will tell."""
    try:
        with open(path, "rb") as file:
            return f"{bucket or ''}/{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return None


def _brought_here(
    manifest: str, open_store: OpenStore, stack: contextlib.ExitStack, at_ns: int | None
) -> Path:
    """The manifest as a local file, which is there until ``stack`` ends."""
    if manifest != "-" and not manifest.startswith("s3://"):
        path = Path(manifest).expanduser()
        path = path / "manifest.json" if path.is_dir() else path
        if path.is_file() or not path.exists():
            return path
    import shutil
    import tempfile

    import trio

    from s3mount.manifest.location import brought_here

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3mount-")))

    async def bring() -> Path:
        if at_ns is not None:
            return await _listed(manifest, at_ns, open_store, folder / "bucket.csv")
        async with brought_here(manifest, open_store) as path:
            # The copy stays when this loop has ended: the checkout runs its own, if it needs one.
            await trio.to_thread.run_sync(
                lambda: shutil.copytree(path.parent, folder, dirs_exist_ok=True)
            )
            return folder / path.name

    return trio.run(bring, strict_exception_groups=True)


async def _listed(source: str, at_ns: int, open_store: OpenStore, path: Path) -> Path:
    """A manifest of ``s3://BUCKET/PREFIX`` as it was, written to ``path``. Raises as ``list_to_file``."""
    from s3mount.app.manifests import list_to_file
    from s3mount.manifest.location import parse_s3

    bucket, prefix = parse_s3(source)
    async with open_store(bucket) as store:
        await list_to_file(store, bucket, prefix, at_ns, path, "csv", lambda text: None)
    return path


def stored_in(headers: ObjectHeaders) -> Stored:
    """The mode and time that an object's metadata tells, in any of the ways that tools write them."""
    from s3mount.checkout.fetching import Stored
    from s3mount.tree.attributes import mode_and_mtime

    return Stored(*mode_and_mtime(headers))
