"""The source of a mount: which words mean a manifest, which a time (``--at``), and which the present."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from s3mount.cli.param_types import parse_bucket
from s3mount.config import Past
from s3mount.manifest.times import format_time, parse_time

SUFFIXES = (".csv", ".csv.gz", ".parquet", "manifest.json")
"""By which the name of a manifest is known."""
SNAPSHOTS = "snapshots"
"""The folder below the state folder for the logs of snapshot mounts: they have nothing to keep."""


def what_to_mount(values: dict[str, Any]) -> tuple[str, str, Past | None]:
    """Bucket and prefix, and what of the past to show of them. Raises click.UsageError, UsageError."""
    source: str = values["bucket"]
    if is_manifest(source, is_forced=values["manifest"]):
        return _manifest(source, values)
    if values["manifest_bucket"] is not None:
        raise click.UsageError("--bucket is for a manifest that names no bucket")
    if source == "-" or ("/" in source and "://" not in source and _is_pipe(Path(source))):
        raise click.UsageError(
            f"{source} is a pipe: a mount reads its manifest more than once; write it to a file first"
        )
    if os.path.isfile(source) and values.get("ready_fd") is None:
        click.echo(
            f"s3mount: note: {source} is taken for a bucket, though a file {source} lies here; to mount that as a "
            f"manifest: ./{source}, or --manifest",
            err=True,
        )
    bucket, prefix = parse_bucket(source)
    if values["at"] is None:
        return bucket, prefix, None
    if values["snapshots"]:
        raise click.UsageError("--snapshots is for a live mount; --at shows one time alone")
    now_ns = time.time_ns()
    at_ns = parse_time(values["at"], now_ns)
    if at_ns > now_ns:
        raise click.UsageError(f"--at {values['at']}: that time is yet to come")
    return bucket, prefix, Past(at_ns=at_ns, said=format_time(at_ns))


def _manifest(source: str, values: dict[str, Any]) -> tuple[str, str, Past]:
    for name, option in (("at", "--at"), ("snapshots", "--snapshots"), ("prefix", "--prefix")):
        if values[name]:
            raise click.UsageError(
                f"{option} is for a bucket; a manifest says itself what it shows"
            )
    place = source if "://" in source else os.path.abspath(source)
    bucket = values["manifest_bucket"]
    home = parse_bucket(source)[0] if source.startswith("s3://") else ""
    return bucket or home, "", Past(manifest=place, bucket=bucket)


def is_manifest(source: str, *, is_forced: bool) -> bool:
    """Does ``source`` mean a manifest rather than a bucket?

    A file does when its name ends as manifests' names do, or when it is given by a path with a slash:
    a bucket's name has none. So does an ``s3://`` URL that ends so; with a slash at its end it is a prefix.
    """
    if is_forced:
        return True
    if "://" in source:
        return source.startswith("s3://") and source.endswith(SUFFIXES)
    return (source.endswith(SUFFIXES) or "/" in source) and os.path.isfile(source)


def shown_source(values: dict[str, Any]) -> str:
    """What mount(8) and ``s3mount status`` show as the source."""
    source: str = values["bucket"]
    return source if values["at"] is None else f"{source}@{values['at']}"


def _is_pipe(path: Path) -> bool:
    # Imported here, as it imports trio, which a mount needs in its second process only.
    from s3mount.manifest.location import is_pipe

    return is_pipe(path)
