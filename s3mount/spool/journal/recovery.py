"""What a start does with blobs and rows that do not fit together: adopt them, set them aside, or say why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from s3mount.background import contained
from s3mount.crashpoints import crashpoint
from s3mount.refs import Key
from s3mount.spool.journal import salvage
from s3mount.spool.journal.changes import Change, Put
from s3mount.spool.journal.journal import DamagedRow
from s3mount.spool.journal.orphan_blobs import Orphan, judge
from s3mount.spool.journal.salvage import Damage, KeptBlob

log = logging.getLogger(__name__)


def look_after(
    folder: Path,
    rows: list[DamagedRow],
    changes: Mapping[Key, Change],
    orphans: Collection[Path],
    adopt: Callable[[Put], None],
) -> None:
    """Keep the damaged ``rows`` aside, and give each of the ``orphans`` (blobs) to its change, if it has one.

    Where something was damaged, ``adopt`` takes changes that are known by their blobs' labels only into the
    journal, and what belongs to nobody is kept with the damage. Else it is removed. What goes wrong with one
    of them leaves it to the next start. May be killed at any point, and is repeated then. Raises OSError and
    LocalDiskError.
    """
    found = judged(orphans, changes)
    damage = next((each for each in salvage.damages(folder) if each.is_open), None)
    damage = _keep_rows(folder, damage, rows)
    adopted = claims(found, changes)
    if damage is None and (len(adopted) > 1 or any(orphan.is_torn for orphan in found)):
        damage = salvage.open_damage(folder, "rows of the journal are lost")
    if damage is None:
        # One alone is what a kill between a label and its row leaves: of an operation that nobody was told
        # of, and that may have been of several files.
        adopted = {}
    for change in list(adopted.values()):
        log.warning("%r is taken from its blob's label: the journal has no row of it", change.key)
        is_taken = False
        with contained(f"the blob {change.blob_id} of {change.key!r} is not adopted"):
            adopt(change)
            is_taken = True
        if not is_taken:
            del adopted[change.blob_id]
    if damage is None:
        for orphan in found:
            if orphan.blob_id not in adopted:
                log.warning("the blob %s is removed: %s", orphan.blob_id, orphan.why)
                with contained(f"the blob {orphan.blob_id} is left for the next start"):
                    orphan.path.unlink(missing_ok=True)
                    crashpoint("recovery: blob removed")
        return
    kept = []
    left = len(orphans) - len(found)
    for orphan in [each for each in found if each.blob_id not in adopted]:
        left += 1
        with contained(f"the blob {orphan.blob_id} is left for the next start"):
            if orphan.size:
                place = damage.folder
                log.error("the blob %s is kept in %s: %s", orphan.blob_id, place, orphan.why)
                salvage.keep_blob(damage, orphan.path)
                kept.append(orphan)
            else:
                orphan.path.unlink(missing_ok=True)
            left -= 1
    damage = msgspec.structs.replace(
        damage,
        is_open=left > 0,
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


def judged(blobs: Collection[Path], changes: Mapping[Key, Change]) -> list[Orphan]:
    """What is to become of ``blobs``, by id; without those that cannot be looked at, which stay where they are."""
    found = []
    for path in sorted(blobs):
        with contained(f"the blob {path.name} is left as it is"):
            found.append(judge(path, changes))
    return found


def claims(found: list[Orphan], changes: Mapping[Key, Change]) -> dict[str, Put]:
    """The changes that labels of blobs tell of and that are not in ``changes``, by blob id.

    Of several blobs of one key it is that of the latest change.
    """
    latest: dict[Key, Put] = {}
    for orphan in found:
        change = orphan.change
        if change is None:
            continue
        known = latest.get(change.key) or changes.get(change.key)
        if known is None or known.seq < change.seq:
            latest[change.key] = change
    return {change.blob_id: change for change in latest.values()}
