"""Looking into a state folder without changing anything in it, whether or not it is in use."""

from __future__ import annotations

from pathlib import Path

import msgspec

from s3mount.errors import LocalDiskError
from s3mount.refs import Key
from s3mount.spool.journal import recovery, salvage
from s3mount.spool.journal.changes import Change, Put, blob_id_of
from s3mount.spool.journal.orphan_blobs import Orphan
from s3mount.spool.journal.recover_blob import extents_of


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in a state folder.

    ``changes`` are those that go on at the next start, also those that only a blob's label tells of
    (``adopted``). ``bytes_of`` tells how many bytes are to be sent for each, as far as they are here.
    ``orphans``: other blobs. ``missing``: keys whose blob is gone. ``problem``: why the journal cannot be
    used as it is. ``damages``: what was set aside before.
    """

    changes: list[Change]
    bytes_of: dict[Key, int]
    adopted: list[Key]
    orphans: list[Orphan]
    missing: list[Key]
    unreadable: list[Key]
    problem: str | None
    damages: list[salvage.Damage]

    @property
    def size_bytes(self) -> int:
        """How many bytes are to be sent."""
        return sum(self.bytes_of.values())


def inspect(folder: Path, *, is_in_use: bool) -> Inspection:
    """Look into the state folder; ``is_in_use``: a process owns it and may be writing. Raises LocalDiskError."""
    journal = folder / salvage.JOURNAL
    try:
        rows, problem = _read_copy(journal)
        changes: dict[Key, Change] = {}
        unreadable = []
        for key, body in rows:
            try:
                change: Change = msgspec.msgpack.decode(body, type=Change)
                changes[change.key] = change
            except Exception:  # noqa: BLE001  whatever one row has, the others are told
                unreadable.append(str(key))
        blobs = {path.name: path for path in _blobs(folder)}
        orphans: list[Orphan] = []
        adopted: list[Key] = []
        if not is_in_use:
            # In use, a file that is just being rewritten has a blob before it has a row.
            taken = {blob_id_of(change) for change in changes.values()}
            unclaimed = [path for name, path in blobs.items() if name not in taken]
            found = recovery.judged(unclaimed, changes)
            claims = recovery.claims(found, changes)
            adopted = [change.key for change in claims.values()]
            changes |= {change.key: change for change in claims.values()}
            orphans = [orphan for orphan in found if orphan.blob_id not in claims]
        bytes_of = {
            change.key: extents_of(change, str(folder / salvage.BLOBS / change.blob_id)).total
            for change in changes.values()
            if isinstance(change, Put) and change.blob_id
        }
    except OSError as error:
        raise LocalDiskError(f"{folder} cannot be read: {error.strerror}") from error
    ordered = sorted(changes.values(), key=lambda change: change.seq)
    return Inspection(
        changes=ordered,
        bytes_of=bytes_of,
        adopted=adopted,
        orphans=orphans,
        missing=[c.key for c in ordered if blob_id_of(c) not in blobs.keys() | {""}],
        unreadable=[key for key in unreadable if key not in adopted],
        problem=problem,
        damages=salvage.damages(folder),
    )


def _blobs(folder: Path) -> list[Path]:
    place = folder / salvage.BLOBS
    return [path for path in place.iterdir() if path.is_file()] if place.is_dir() else []


def _read_copy(journal: Path) -> tuple[list[tuple[object, bytes]], str | None]:
    with salvage.copied(journal) as copy:
        if not copy.exists() or not copy.stat().st_size:
            return [], None
        tables, problem = salvage.readable(copy)
    return [(row[0], _as_bytes(row[2])) for row in tables["change"]], problem


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
