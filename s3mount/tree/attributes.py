"""POSIX attributes in user metadata: read from what several tools write, written as s3fs does.

Read, first found wins: s3fs (``mode`` decimal st_mode, ``uid``, ``gid``, ``mtime``, ``ctime``, ``atime`` as
seconds with an optional fraction, ``xattr``), rclone (``mtime`` with a decimal fraction), AWS's own
tools (``file-permissions`` octal, ``file-owner``, ``file-group``, ``file-mtime``, ``file-atime`` with ``ns``),
s3sync (``permissions``, ``owner``, ``group``), Cloud Storage (``goog-reserved-posix-*``) and goofys/geesefs
(``--symlink-target``). Written: s3fs's names, with fractions of nine digits, which all read alike.
"""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
import stat
import urllib.parse
from collections.abc import Iterable, Mapping

import msgspec

from s3mount.clock import clamped_ns
from s3mount.refs import Attributes, Key, ObjectHeaders
from s3mount.s3.headers import METADATA_BYTES_MAX, whole_number

DIRECTORY_CONTENT_TYPE = "application/x-directory"
STORED_HERE = "s3mount-attributes"
"""Metadata name on a directory's marker: objects directly below carry attributes worth a HEAD."""

OWN_NAMES = frozenset(
    ("mode", "uid", "gid", "mtime", "ctime", "atime", "rdev", "xattr", STORED_HERE)
)
_CAN_BE_LACKED = ("atime", "ctime")
_GIVE_WAY = (*_CAN_BE_LACKED, STORED_HERE, "gid", "uid", "mtime", "rdev", "mode")
"""Of our own names these are left out first where foreign metadata take the room."""
_FORMATS = (
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
)


_UNKNOWN_NS = -(1 << 62)
_MTIME_NAMES = ("mtime", "file-mtime", "goog-reserved-posix-mtime")


def encode(
    attributes: Attributes,
    known: ObjectHeaders | None,
    *,
    content_type: str | None = None,
    with_times: bool = True,
) -> ObjectHeaders:
    """Headers that carry ``attributes`` and keep everything foreign of ``known``.

    ``content_type`` is used where ``known`` has none. Without times LastModified will stand for them;
    ctime is there, because it tells one write of a key from every other. Where S3's limit leaves no room
    beside the foreign metadata, names of ours are left out, the least important first.
    """
    metadata = _own_metadata(attributes, with_times=with_times)
    foreign = {
        name: value
        for name, value in (known.metadata if known else {}).items()
        if name not in OWN_NAMES
    }
    room = METADATA_BYTES_MAX - metadata_bytes(foreign)
    for name in _GIVE_WAY:
        if metadata_bytes(metadata) <= room:
            break
        metadata.pop(name, None)
    if stat.S_ISDIR(attributes.mode):
        content_type = DIRECTORY_CONTENT_TYPE
    base = known or ObjectHeaders()
    return msgspec.structs.replace(
        base, metadata=foreign | metadata, content_type=base.content_type or content_type
    )


def metadata_bytes(metadata: Mapping[str, str]) -> int:
    """What S3's limit for user metadata counts: names and values together."""
    return sum(len(name) + len(value) for name, value in metadata.items())


def _own_metadata(attributes: Attributes, *, with_times: bool) -> dict[str, str]:
    """All that is stored of ``attributes``."""
    metadata = {}
    metadata["mode"] = str(attributes.mode)
    metadata["uid"] = str(attributes.uid)
    metadata["gid"] = str(attributes.gid)
    metadata["ctime"] = _time_text(attributes.ctime_ns)
    if with_times:
        metadata["mtime"] = _time_text(attributes.mtime_ns)
        metadata["atime"] = _time_text(attributes.atime_ns)
    if attributes.rdev:
        metadata["rdev"] = str(attributes.rdev)
    if attributes.xattrs:
        metadata["xattr"] = _encode_xattrs(attributes.xattrs)
    if stat.S_ISDIR(attributes.mode):
        metadata[STORED_HERE] = "1"
    return metadata


def does_fit(attributes: Attributes, known: ObjectHeaders | None) -> bool:
    """Is there room for all of ``attributes`` but atime and ctime beside the foreign metadata of ``known``?"""
    metadata = dict(known.metadata) if known else {}
    metadata |= _own_metadata(attributes, with_times=True)
    return metadata_bytes(metadata) - _bytes_of(metadata, _CAN_BE_LACKED) <= METADATA_BYTES_MAX


def _bytes_of(metadata: Mapping[str, str], names: Iterable[str]) -> int:
    return metadata_bytes({name: metadata[name] for name in names if name in metadata})


def decode(headers: ObjectHeaders, default: Attributes) -> Attributes:
    """The attributes that ``headers`` carry; what they do not tell, or tell wrongly, is ``default``'s.

    A type in the stored mode overrules the default's, except that a directory stays one.
    """
    data = headers.metadata
    mode = _mode(data, default.mode)
    if "symlink-target" in data or "--symlink-target" in data:
        mode = stat.S_IFLNK | 0o777
    mtime_ns = _time(data, _MTIME_NAMES)
    atime_ns = _time(data, ("atime", "file-atime", "goog-reserved-posix-atime"))
    ctime_ns = _time(data, ("ctime", "file-ctime", "goog-reserved-posix-ctime"))
    if mtime_ns is None:
        # A ctime alone is from when the upload began, while the file was still written.
        mtime_ns, ctime_ns = default.mtime_ns, None
    return Attributes(
        mode=mode,
        uid=_number(data, ("uid", "file-owner", "owner", "goog-reserved-posix-uid"), default.uid),
        gid=_number(data, ("gid", "file-group", "group", "goog-reserved-posix-gid"), default.gid),
        mtime_ns=mtime_ns,
        ctime_ns=mtime_ns if ctime_ns is None else ctime_ns,
        atime_ns=mtime_ns if atime_ns is None else atime_ns,
        rdev=_number(data, ("rdev",), 0),
        xattrs=_decode_xattrs(data.get("xattr", "")),
    )


def mode_and_mtime(headers: ObjectHeaders) -> tuple[int | None, int | None]:
    """The mode and time (ns) that an object's metadata tells, ``None`` where it does not. A link has a link's mode."""
    found = decode(headers, Attributes(0, 0, 0, _UNKNOWN_NS, _UNKNOWN_NS, _UNKNOWN_NS))
    is_link = symlink_target_of(headers) is not None
    return (
        stat.S_IFLNK if is_link else found.mode or None,
        None if found.mtime_ns == _UNKNOWN_NS else found.mtime_ns,
    )


def content_type_of(key: Key) -> str:
    """The type that a key's ending tells; octets where it tells none, or that they are compressed."""
    guessed, encoding = mimetypes.guess_type(key)
    return guessed if guessed and encoding is None else "application/octet-stream"


def has_times(headers: ObjectHeaders) -> bool:
    """Do ``headers`` carry an mtime?"""
    return _time(headers.metadata, _MTIME_NAMES) is not None


def written_at_ns(headers: ObjectHeaders) -> int | None:
    """The ctime that an object carries: together with its key it names one write of ours.

    ``None`` where there is none.
    """
    return _time(headers.metadata, ("ctime",))


def symlink_target_of(headers: ObjectHeaders | None) -> bytes | None:
    """A link's target where it lies in metadata rather than in the body."""
    if headers is None:
        return None
    for name in ("--symlink-target", "symlink-target"):
        if name in headers.metadata:
            return urllib.parse.unquote_to_bytes(headers.metadata[name])
    return None


def are_stored(headers: ObjectHeaders) -> bool:
    """Does a directory's marker with these headers say that attributes are stored below it?"""
    return any(
        name in headers.metadata
        for name in (STORED_HERE, "mode", "mtime", "file-permissions", "uid")
    )


def _time_text(time_ns: int) -> str:
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    return f"{seconds}.{fraction:09d}"


def _mode(data: Mapping[str, str], default: int) -> int:
    for name, base in (
        ("mode", 10),
        ("file-permissions", 8),
        ("permissions", 10),
        ("goog-reserved-posix-mode", 8),
    ):
        text = data.get(name)
        if text is None:
            continue
        try:
            mode = int(text, base)
        except ValueError:
            continue
        if not 0 <= mode < 1 << 17:
            continue
        kind = stat.S_IFMT(mode)
        if kind not in _FORMATS or stat.S_ISDIR(default) or stat.S_ISDIR(kind):
            kind = stat.S_IFMT(default)
        return kind | stat.S_IMODE(mode)
    return default


def _number(data: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        found = whole_number(data.get(name, ""))
        if found is not None and found < 1 << 32:
            return found
    return default


def _time(data: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        text = data.get(name)
        if text is not None and (parsed := _parse_time(text)) is not None:
            return parsed
    return None


def _parse_time(text: str) -> int | None:
    """Nanoseconds from ``1700000000``, ``1700000000.5`` or ``1700000000123456789ns``; else ``None``.

    A time that cannot be kept becomes the nearest one that can.
    """
    text = text.strip()
    try:
        if text.endswith("ns"):
            return clamped_ns(int(text[:-2]))
        whole, _, fraction = text.partition(".")
        seconds = int(whole)
        digits = int((fraction + "000000000")[:9]) if fraction else 0
    except ValueError:
        return None
    # The writer above uses floor division, so that the fraction always counts upwards.
    return clamped_ns(seconds * 1_000_000_000 + digits)


def _encode_xattrs(xattrs: Mapping[str, bytes]) -> str:
    encoded = {name: base64.b64encode(value).decode() for name, value in sorted(xattrs.items())}
    return urllib.parse.quote(json.dumps(encoded, separators=(",", ":")))


def _decode_xattrs(text: str) -> dict[str, bytes]:
    if not text:
        return {}
    try:
        parsed = json.loads(urllib.parse.unquote(text))
        return {str(name): base64.b64decode(value) for name, value in parsed.items()}
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        return {}
