"""What a start does with blobs and rows that do not fit together: adopt them, set them aside, or say why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from s3mount.refs import Key
from s3mount.spool import salvage
from s3mount.spool.changes import Change
from s3mount.spool.journal import DamagedRow
from s3mount.spool.orphans import Orphan, judge
from s3mount.spool.salvage import Damage, KeptBlob
from s3mount.steps import reach

log = logging.getLogger(__name__)


def look_after(
    folder: Path,
    rows: list[DamagedRow],
    changes: Mapping[Key, Change],
    orphans: Collection[Path],
    adopt: Callable[[Change], None],
) -> None:
    """Keep the damaged ``rows`` aside, and give each of the ``orphans`` (blobs) to its change, if it has one.

    Where something was damaged, ``adopt`` takes changes that are known by their blobs' labels only into the
    journal, and what belongs to nobody is kept with the damage. Else it is removed. May be killed at any
    point, and is repeated then. Raises OSError and LocalDiskError.
    """
    found = sorted((judge(path, changes) for path in orphans), key=lambda orphan: orphan.blob_id)
    damage = next((each for each in salvage.damages(folder) if each.is_open), None)
    damage = _keep_rows(folder, damage, rows)
    adopted = claims(found, changes)
    if damage is None and (len(adopted) > 1 or any(orphan.is_torn for orphan in found)):
        damage = salvage.open_damage(folder, "rows of the journal are lost")
    if damage is None:
        # One alone is what a kill between a label and its row leaves: of an operation that nobody was told
        # of, and that may have been of several files.
        adopted = {}
    for change in adopted.values():
        log.warning("%r is taken from its blob's label: the journal has no row of it", change.key)
        adopt(change)
    if damage is None:
        for orphan in found:
            if orphan.blob_id not in adopted:
                log.warning("the blob %s is removed: %s", orphan.blob_id, orphan.why)
                orphan.path.unlink(missing_ok=True)
                reach("recovery: blob removed")
        return
    kept = [orphan for orphan in found if orphan.size and orphan.blob_id not in adopted]
    for orphan in found:
        if orphan in kept:
            log.error("the blob %s is kept in %s: %s", orphan.blob_id, damage.folder, orphan.why)
            salvage.keep_blob(damage, orphan.path)
        elif orphan.blob_id not in adopted:
            orphan.path.unlink(missing_ok=True)
    damage = msgspec.structs.replace(
        damage,
        is_open=False,
        adopted=(*damage.adopted, *(change.key for change in adopted.values())),
        kept_blobs=(*damage.kept_blobs, *(KeptBlob(o.blob_id, o.size, o.key, o.why) for o in kept)),
    )
    salvage.write_report(damage)
    log.error("%s", damage)


def _keep_rows(folder: Path, damage: Damage | None, rows: list[DamagedRow]) -> Damage | None:
    """The damage with ``rows`` in its report and their bodies in its folder."""
    if not rows:
        return damage
    if damage is None:
        damage = salvage.open_damage(folder, f"rows of the journal are damaged ({rows[0].why})")
    for number, row in enumerate(rows):
        log.error("the journal's row of %r cannot be read: %s", row.key, row.why)
        salvage.keep_row(damage, number, row.body)
    damage = msgspec.structs.replace(damage, lost_rows=tuple(row.key for row in rows))
    salvage.write_report(damage)
    return damage


def claims(found: list[Orphan], changes: Mapping[Key, Change]) -> dict[str, Change]:
    """The changes that labels of blobs tell of and that are not in ``changes``, by blob id.

    Of several blobs of one key it is that of the latest change.
    """
    latest: dict[Key, Change] = {}
    for orphan in found:
        change = orphan.change
        if change is None:
            continue
        known = latest.get(change.key) or changes.get(change.key)
        if known is None or known.seq < change.seq:
            latest[change.key] = change
    return {change.blob_id: change for change in latest.values()}
