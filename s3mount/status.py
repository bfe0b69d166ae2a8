"""What a mount is and does, as one value: for people as text, for programs as JSON."""

from __future__ import annotations

import stat
import time
from typing import Any, Literal, TypeAlias

import msgspec

from s3mount.refs import Pinned
from s3mount.s3.lacks import describe_lacks

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
TOP_MARKER = ".s3mount/"
"""The key, below a mount's prefix, that keeps the attributes of its top folder."""
FULL_SHARE = 0.9
FREE_BYTES_LOW = 64 << 20


Phase: TypeAlias = Literal[
    "serving", "ending", "draining", "dead", "silent", "unknown", "ended", "lost"
]


LASTING_KINDS = frozenset(
    ("BaseGoneError", "BlobGoneError", "DamagedBlobError", "InternalError", "SourceGoneError")
)
"""Errors whose reason cannot be removed."""
CONFLICT_ADVICE = "to decide a conflict: s3mount retry [--overwrite], or discard"


class PendingChange(msgspec.Struct, frozen=True):
    """One change that is not in S3 yet. ``error`` says why the last try failed.

    ``conflict``: somebody else wrote it first, and it waits for a person to decide. ``error_kind`` names the
    class of the error. ``changed_at_ns`` is when the file was last changed, 0 where that is not known.
    """

    key: str
    op: str = ""
    state: str = ""
    size: int = 0
    attempts: int = 0
    error: str | None = None
    conflict: bool = False
    error_kind: str = ""
    changed_at_ns: int = 0


class Conflict(msgspec.Struct, frozen=True):
    """Somebody else wrote a key first, at ``at_ns``.

    ``outcome``: ``kept-both`` (ours is ``kept_as`` now), ``overwritten`` (ours replaced theirs) or ``held``.
    """

    at_ns: int
    key: str
    outcome: str
    kept_as: str = ""


class Damaged(msgspec.Struct, frozen=True):
    """Something in the state folder was damaged, and set aside in ``folder``."""

    folder: str
    at_ns: int
    why: str
    saved: int = 0
    adopted: tuple[str, ...] = ()
    lost_rows: tuple[str, ...] = ()
    kept_blobs: tuple[dict[str, Any], ...] = ()


class Pending(msgspec.Struct, frozen=True):
    """What is not in S3 yet. ``list`` names the first of them, troubled ones before others."""

    changes: int = 0
    bytes: int = 0
    states: dict[str, int] = {}
    list: tuple[PendingChange, ...] = ()


class MissingVersion(msgspec.Struct, frozen=True):
    """A file whose version S3 does not hand out (any more)."""

    path: str
    version_id: str | None = None
    why: str = ""


class Missing(msgspec.Struct, frozen=True):
    """Files that were wanted and could not be had. ``list`` names the first of them."""

    files: int = 0
    list: tuple[MissingVersion, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One mount at one moment.

    ``phase``: ``serving``; ``ending`` when it was told to end, and sends what is left before its mount
    ends; ``draining`` after its mount ended, sending what is left; ``dead`` when
    the process is gone and the mount point was left behind; ``silent`` when it does not answer;
    ``unknown`` when the mount answers, but where its process listens is not known. Without any
    mount: ``ended`` in good order with changes kept for the next mount, or ``lost``, when the process
    was killed and nobody has counted what it kept.
    ``conflicts`` are the last ones, oldest first. ``store_honours`` is what the store was seen to honour.
    ``paused``: nothing is sent, as somebody asked for; ``pinned`` is what stays in the cache.
    ``outage`` is why S3 cannot be reached at present; empty while it can.
    ``past`` tells what a snapshot mount shows, ``missing`` what of it cannot be read;
    ``snapshots`` are the times that were looked at below ``.snapshots``.
    ``kernel`` holds the limits that were set, ``s3`` the requests' counters since the start,
    ``uploads`` and ``cache`` those of the rooms of that name, ``loop`` how long its turns were.
    ``stuck`` is where a process stands that does not answer, as far as that is known.
    """

    mountpoint: str
    source: str
    phase: Phase
    pid: int | None = None
    version: str = ""
    bucket: str = ""
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    versioning: str | None = None
    read_only: bool = False
    mounted_at_ns: int = 0
    state_dir: str = ""
    cache_dir: str = ""
    log_path: str = ""
    pending: Pending = Pending()
    inodes: int = 0
    open_files: int = 0
    listings: dict[str, float] = {}
    ignored_keys: Any = None
    spool: dict[str, Any] = {}
    uploads: dict[str, Any] = {}
    cache: dict[str, Any] = {}
    paused: bool = False
    pinned: tuple[Pinned, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    damaged: tuple[Damaged, ...] = ()
    store_honours: dict[str, Any] = {}
    outage: str = ""
    past: dict[str, Any] = {}
    missing: Missing = Missing()
    snapshots: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kernel: dict[str, Any] = {}
    s3: dict[str, float] = {}
    loop: dict[str, float] = {}
    stuck: str = ""

    @property
    def troubled(self) -> tuple[PendingChange, ...]:
        """Changes that S3 refused or could not take yet, with the reason."""
        return tuple(change for change in self.pending.list if change.error)


def to_json(value: object) -> str:
    """Indented JSON of a snapshot, a list of them, or one file's description."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def to_text(snapshot: Snapshot, *, is_all: bool = False) -> str:
    """A few lines for a person, without the last newline; ``is_all``: with each thing that S3 honours."""
    lines = [f"{snapshot.mountpoint}: {snapshot.source}{_what(snapshot)}"]
    if snapshot.phase == "dead":
        lines.append(
            "  its process is gone; what was written and closed is kept in the state folder"
        )
        lines.append(f"  s3mount unmount {snapshot.mountpoint}, or mount it again, to go on")
    elif snapshot.phase == "silent":
        why = snapshot.stuck or "its log may tell why"
        lines.append(f"  its process does not answer; {why}")
    elif snapshot.phase == "ended":
        kept = amount(snapshot.pending.changes, snapshot.pending.bytes)
        lines.append(f"  not mounted; {kept} kept here and sent at the next mount")
        lines.append(f"  or by s3mount recover {snapshot.state_dir}")
    elif snapshot.phase == "lost":
        lines.append("  not mounted; its process was killed: what it had not sent is kept here")
        lines.append(f"  and sent at the next mount, or by s3mount recover {snapshot.state_dir}")
    elif snapshot.phase == "unknown":
        lines.append("  its process cannot be asked (was it started with another S3MOUNT_RUN_DIR?)")
    elif snapshot.past:
        lines.append(f"  {describe_past(snapshot.past)}")
    else:
        lines.append(f"  {describe_pending(snapshot)}")
    if snapshot.paused:
        lines.append(f"  uploads are paused: s3mount resume {snapshot.mountpoint}")
    lines.extend(f"  note: {note}" for note in snapshot.notes)
    if snapshot.outage:
        lines.append(f"  S3 cannot be reached: {snapshot.outage}")
    lines.extend(_missing(snapshot.missing))
    if snapshot.uploads.get("saved_bytes"):
        saved = size_text(snapshot.uploads["saved_bytes"])
        lines.append(f"  {saved} were not sent, as S3 had them already")
    lines.extend(_room(snapshot.spool))
    lines.extend(map(_pinned, snapshot.pinned))
    lines.extend(_trouble(snapshot))
    waiting = {change.key for change in snapshot.pending.list if change.conflict}
    lines.extend(
        _conflict(conflict)
        for conflict in snapshot.conflicts
        if conflict.outcome != "held" or conflict.key in waiting
    )
    lines.extend(map(_damaged, snapshot.damaged))
    if snapshot.store_honours:
        describe = describe_all_honours if is_all else describe_honours
        told = describe(snapshot.store_honours, snapshot.versioning)
        lines.extend(f"  S3 {line}" for line in told)
    if snapshot.state_dir:
        lines.append(f"  state {snapshot.state_dir}")
    if snapshot.cache_dir:
        lines.append(f"  cache {snapshot.cache_dir}")
    if snapshot.log_path:
        lines.append(f"  log   {snapshot.log_path}")
    return "\n".join(lines)


def _pinned(pinned: Pinned) -> str:
    size = size_text(pinned.size_bytes)
    line = f"  pinned in the cache: {pinned.path or 'all'}: {pinned.files} files, {size}"
    return f"{line}; not all could be fetched: {pinned.error}" if pinned.error else line


def _trouble(snapshot: Snapshot) -> list[str]:
    lines = []
    for change in snapshot.troubled:
        state = "conflict" if change.conflict else change.state
        tries = "1 try" if change.attempts == 1 else f"{change.attempts} tries"
        lines.append(f"  {state} after {tries}: {_shown(change.key)}: {change.error}")
    told = dict.fromkeys(map(advice_on, snapshot.troubled))
    if CONFLICT_ADVICE in told:
        told = {CONFLICT_ADVICE: None}
    return lines + [f"  {each}" for each in told if each]


def advice_on(change: PendingChange) -> str:
    """What a person can do about a change that is not sent; empty where time alone will tell."""
    if change.conflict:
        return CONFLICT_ADVICE
    if change.state != "parked":
        return ""
    if change.error_kind in LASTING_KINDS:
        return "where the reason cannot pass: a copy of what is here by s3mount export, then s3mount discard"
    if change.error_kind == "ArchivedError":
        return (
            "archived: s3mount restore PATH, and once it is back s3mount retry; or s3mount discard"
        )
    return "once the reason is gone: s3mount retry; a copy of it: s3mount export"


def _missing(missing: Missing) -> list[str]:
    if not missing.files:
        return []
    count = "1 file" if missing.files == 1 else f"{missing.files} files"
    lines = [f"  {count} cannot be read, as S3 does not hand out the version:"]
    for each in missing.list:
        version = f" version {each.version_id}" if each.version_id else ""
        lines.append(f"    {each.path}{version}: {each.why}")
    if missing.files > len(missing.list):
        lines.append(f"    and {missing.files - len(missing.list)} more")
    return lines


def describe_past(past: dict[str, Any]) -> str:
    """What a snapshot mount shows, in words."""
    if "at" in past:
        text = f"as it was at {past['at']}"
    else:
        size = size_text(past.get("bytes") or 0)
        text = f"{past.get('files')} files, {size}, SHA-256 {past.get('digest')}"
    unshown = past.get("unshown")
    return f"{text}; {unshown} keys have no place in the tree" if unshown else text


def _shown(key: str) -> str:
    """A key as people know it."""
    name = key.removesuffix(TOP_MARKER)
    is_top = name != key and (not name or name.endswith("/"))
    return "the top folder's attributes" if is_top else key


def _room(spool: dict[str, Any]) -> list[str]:
    """Warnings where writers are, or soon will be, told that there is no space."""
    lines = []
    used, most = spool.get("used_bytes", 0), spool.get("max_bytes", 0)
    if most and used > FULL_SHARE * most:
        lines.append(
            f"  the spool holds {size_text(used)} of {size_text(most)} (--spool-size): writers wait "
            "for uploads to make room"
        )
    free = spool.get("disk_free_bytes")
    if free is not None and free < FREE_BYTES_LOW:
        lines.append(
            f"  the disk of the state folder has {size_text(free)} left: writers are told so, until "
            "uploads make room"
        )
    return lines


def _conflict(conflict: Conflict) -> str:
    at = _local_time(conflict.at_ns)
    became = {
        "kept-both": f"theirs has the name, yours is {conflict.kept_as}",
        "overwritten": "yours replaced theirs",
        "held": "yours waits for you to decide",
        "not-deleted": "theirs stays, though you removed it",
        "not-moved": "somebody else replaced or removed it before it was moved here",
    }
    outcome = became.get(conflict.outcome, conflict.outcome)
    return f"  conflict at {at}: {conflict.key}: {outcome}"


def _damaged(damage: Damaged) -> str:
    parts = [f"  damaged: {damage.why}; set aside in {damage.folder}"]
    if damage.kept_blobs:
        parts.append(f"with {len(damage.kept_blobs)} files that nobody claims")
    return ", ".join(parts)


HONOURS = {
    "if_absent": "If-None-Match on PUT",
    "if_match": "If-Match on PUT",
    "complete_condition": "conditions on CompleteMultipartUpload",
    "copy_condition": "conditions on COPY",
    "copy_source_condition": "conditions on a COPY's source",
    "delete_condition": "If-Match on DELETE",
}


def describe_honours(honours: dict[str, Any], versioning: str | None = None) -> list[str]:
    """What the store honours in one line where all is well, and a line for each thing that it lacks."""
    said = []
    lacking = _conditions(honours, False)
    if len(_conditions(honours, True)) == len(HONOURS):
        said.append("honours every condition of writes and deletions")
    elif lacking:
        said.append(f"does not honour {', '.join(lacking)}: a look just before stands for it")
    elif honours.get("may_write") is not False:
        reason = f": {honours['reason']}" if honours.get("reason") else " yet"
        said.append(f"was not tried for all it may honour{reason}")
    said += _verified_and_kept(honours, versioning)
    return ["; ".join(said)] * bool(said) + describe_lacks(honours)


def describe_all_honours(honours: dict[str, Any], versioning: str | None = None) -> list[str]:
    """Each condition by name: honoured, not honoured, not tried; and all else that was found."""
    said = [
        f"{what} {', '.join(names)}"
        for value, what in _HONOURED
        if (names := _conditions(honours, value))
    ]
    if honours.get("etag_is_md5") is False:
        said.append("gives ETags that are no MD5s")
    said += _verified_and_kept(honours, versioning)
    if honours.get("reason"):
        said.append(f"could not be tried for all: {honours['reason']}")
    return said + describe_lacks(honours)


def _conditions(honours: dict[str, Any], value: bool | None) -> list[str]:
    """The names of those of which ``value`` is known."""
    return [name for field, name in HONOURS.items() if honours.get(field) is value]


def _verified_and_kept(honours: dict[str, Any], versioning: str | None) -> list[str]:
    said = []
    if honours.get("checksum") or honours.get("content_md5"):
        said.append(f"verifies {honours.get('checksum') or 'Content-MD5'}")
    if versioning in _VERSIONS:
        said.append(_VERSIONS[versioning])
    return said


_HONOURED = ((True, "honours"), (False, "does not honour"), (None, "was not tried for"))
_VERSIONS = {
    "enabled": "keeps versions",
    "suspended": "keeps no new versions (suspended)",
    "off": "keeps no versions",
}


def file_to_text(described: dict[str, Any]) -> str:
    """One file's description, a line for each thing known, without the last newline."""
    shown = {name: value for name, value in described.items() if value is not None}
    if "mode" in shown:
        shown["mode"] = stat.filemode(int(shown["mode"], 8))
    if "mtime_ns" in shown:
        shown["mtime"] = _local_time(shown.pop("mtime_ns"))
    width = max(map(len, shown), default=0)
    return "\n".join(f"{name.replace('_', ' '):{width}}  {value}" for name, value in shown.items())


def _local_time(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ns / 1e9))


def describe_pending(snapshot: Snapshot) -> str:
    """How much is not in S3 yet, in words."""
    pending = snapshot.pending
    if not pending.changes:
        return "everything is in S3"
    states = ", ".join(f"{count} {name}" for name, count in pending.states.items() if count)
    text = f"not in S3 yet: {amount(pending.changes, pending.bytes)}"
    return f"{text}: {states}" if states else text


def amount(changes: int, size_bytes: int) -> str:
    """A number of changes and their size, in words."""
    return f"{changes} {'change' if changes == 1 else 'changes'} ({size_text(size_bytes)})"


def size_text(size_bytes: float) -> str:
    """A number of bytes in the largest binary unit that leaves a number from 1 on."""
    value = float(size_bytes)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes every value")


def _what(snapshot: Snapshot) -> str:
    parts = []
    if snapshot.endpoint_url:
        parts.append(f"at {snapshot.endpoint_url}")
    if snapshot.read_only:
        parts.append("read-only")
    if snapshot.phase in ("ending", "draining", "dead", "silent", "unknown"):
        parts.append(snapshot.phase)
    if snapshot.pid is not None:
        parts.append(f"pid {snapshot.pid}")
    return f" ({', '.join(parts)})" if parts else ""
