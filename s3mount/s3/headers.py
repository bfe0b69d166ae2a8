"""What travels beside an object's bytes: rules for keys and metadata, and their HTTP spelling."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache

from s3mount.clock import DATE_NS_MAX, clamped_ns
from s3mount.errors import RejectedError, ServerFaultError
from s3mount.refs import Key, ObjectHeaders, ObjectInfo

KEY_BYTES_MAX = 1024
"""S3's limit for a key in UTF-8 (AWS S3 User Guide, "Naming Amazon S3 objects")."""
DIGITS_MAX = 20
"""More than any number below 2**63 has; Python refuses to read thousands of them."""
METADATA_BYTES_MAX = 2048
"""S3's limit for user metadata, names and values together (User Guide, "User-defined metadata")."""

DEFAULT_CONTENT_TYPE = "binary/octet-stream"
"""What S3 stores when no Content-Type was sent; read back as "none"."""
DEFAULT_STORAGE_CLASS = "STANDARD"
"""What S3 means when it names no storage class; read back as "none"."""
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects are restored before they can be read; so are some of INTELLIGENT_TIERING."""

_META = "x-amz-meta-"
_FIELDS = (
    ("content_type", "content-type"),
    ("content_encoding", "content-encoding"),
    ("content_language", "content-language"),
    ("content_disposition", "content-disposition"),
    ("cache_control", "cache-control"),
    ("expires", "expires"),
    ("storage_class", "x-amz-storage-class"),
)
SSE = "x-amz-server-side-encryption"
CUSTOMER = f"{SSE}-customer-"
"""What the names of SSE-C's three headers begin with."""
_BESIDE = (
    ("website_redirect", "x-amz-website-redirect-location"),
    ("encryption", SSE),
    ("kms_key_id", f"{SSE}-aws-kms-key-id"),
    ("bucket_key", f"{SSE}-bucket-key-enabled"),
    ("lock_mode", "x-amz-object-lock-mode"),
    ("lock_until", "x-amz-object-lock-retain-until-date"),
    ("legal_hold", "x-amz-object-lock-legal-hold"),
)
"""What an object has beside its metadata, and the store may add to by the bucket's defaults."""
_UNTOLD = {
    "content_type": DEFAULT_CONTENT_TYPE,
    "storage_class": DEFAULT_STORAGE_CLASS,
    "bucket_key": "false",
    "legal_hold": "OFF",
}
"""Values that mean the same as none."""
TAGGING = "x-amz-tagging"
TAGGING_DIRECTIVE = "x-amz-tagging-directive"
ACL = "x-amz-acl"
ACL_PREFIXES = (ACL, "x-amz-grant-")
LOCK_PREFIX = "x-amz-object-lock-"
_LACKED = ((SSE,), ACL_PREFIXES)
"""What is sent together or not at all: an object that has something of the kind keeps just that."""
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}
_MD5 = re.compile("[0-9a-f]{32}")
_RESTORE = re.compile('([a-z-]+)="([^"]*)"')
_NOT_IN_HTTP = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


def check_key(key: Key) -> None:
    """Raise RejectedError for a key that S3 cannot hold: empty, over 1,024 bytes, or not UTF-8."""
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError:
        shown = key.encode(errors="replace").decode()
        raise RejectedError("the key is not valid UTF-8", key=shown) from None
    if not size:
        raise RejectedError("the key is empty")
    if size > KEY_BYTES_MAX:
        raise RejectedError(
            f"the key has {size} bytes, S3 takes at most {KEY_BYTES_MAX}",
            key=key,
            status=400,
            code="KeyTooLongError",
        )


def check_headers(headers: ObjectHeaders, key: Key) -> None:
    """Raise RejectedError for headers that HTTP or S3 would not carry unchanged.

    Names are lower-case tokens; values have no control characters and no blanks at either end (HTTP
    strips those). How much metadata is too much is for the store to say, as some take more than S3.
    """
    for name, value in headers.metadata.items():
        if not name or not _TOKEN.issuperset(name):
            raise RejectedError(f"metadata name {name!r} is not a lower-case HTTP token", key=key)
        _check_value(name, value, key)
    for field, name in (*_FIELDS, *_BESIDE):
        value = getattr(headers, field)
        if value is not None:
            _check_value(name, value, key)


def _check_value(name: str, value: str, key: Key) -> None:
    if _NOT_IN_HTTP.search(value) or value != value.strip(" \t"):
        raise RejectedError(f"the value of {name!r} cannot be sent as a header", key=key)


def _as_bytes(value: str) -> str:
    """A value with one character for each byte; text that is none (from an earlier release) as UTF-8."""
    return value.encode().decode("latin-1") if value and max(value) > "\xff" else value


def to_http(headers: ObjectHeaders) -> dict[str, str]:
    """The request headers that store ``headers`` with an object, names in lower case."""
    result = {_META + name: _as_bytes(value) for name, value in headers.metadata.items()}
    for field, name in _FIELDS:
        value = getattr(headers, field)
        if value is not None:
            result[name] = _as_bytes(value)
    result |= beside(headers)
    if headers.tags:
        result[TAGGING] = headers.tags
    return result


def beside(headers: ObjectHeaders) -> dict[str, str]:
    """What a copy inside S3 does not take along with the metadata: to be sent again with it. Tags it takes along."""
    fields = {name: getattr(headers, field) for field, name in _BESIDE}
    until = headers.lock_until
    if until is None or headers.lock_mode is None or _is_over(until):
        # A retention that is over cannot be asked for.
        del fields["x-amz-object-lock-mode"], fields["x-amz-object-lock-retain-until-date"]
    result = {name: value for name, value in fields.items() if value is not None}
    if headers.storage_class is not None:
        result["x-amz-storage-class"] = headers.storage_class
    return result | dict(headers.acl or {})


def lacking(headers: Mapping[str, str], new_objects: Mapping[str, str]) -> dict[str, str]:
    """The encryption and grants of ``new_objects`` where ``headers``, of a request that makes an object, name none.

    >>> lacking({"x-amz-grant-read": "id=x"}, {ACL: "private", SSE: "AES256"})
    {'x-amz-server-side-encryption': 'AES256'}
    """
    found: dict[str, str] = {}
    for prefixes in _LACKED:
        if not any(name.startswith(prefixes) for name in headers):
            found |= {n: value for n, value in new_objects.items() if n.startswith(prefixes)}
    return found


def _is_over(until: str) -> bool:
    try:
        return iso_date_ns(until) <= time.time_ns()
    except ServerFaultError:
        return False


def from_http(answer: Mapping[str, str]) -> ObjectHeaders:
    """The stored headers that an answer to HEAD or GET (names in lower case) tells.

    S3's defaults (``binary/octet-stream``, ``STANDARD``) read as ``None``: sending nothing
    brings about the same again.
    """
    found: dict[str, str | None] = {}
    for field, name in (*_FIELDS, *_BESIDE):
        value = answer.get(name) or None
        found[field] = None if value == _UNTOLD.get(field) else value
    start = len(_META)
    metadata = {name[start:]: value for name, value in answer.items() if name.startswith(_META)}
    return ObjectHeaders(metadata=metadata, **found)  # type: ignore[arg-type]


def same_when_stored(stored: ObjectHeaders, sent: ObjectHeaders) -> bool:
    """Are ``stored`` the headers that were sent, as stores give them back?

    Not compared is what the store adds by itself (encryption, retention), and what it tells elsewhere (tags,
    grants). Some stores turn ``_`` in metadata names into ``-``; defaults read as ``None``.
    """
    return _folded(stored) == _folded(sent)


def _folded(headers: ObjectHeaders) -> tuple[object, ...]:
    metadata = {name.replace("_", "-"): value for name, value in headers.metadata.items()}
    fields = [getattr(headers, field) for field, _ in _FIELDS]
    defaults = (DEFAULT_CONTENT_TYPE, DEFAULT_STORAGE_CLASS)
    return metadata, [None if value in defaults else value for value in fields]


def object_info(key: Key, answer: Mapping[str, str], size: int) -> ObjectInfo:
    """The object that an answer to HEAD or GET describes; ``size`` is the whole object's."""
    headers = from_http(answer)
    etag = bare_etag(answer.get("etag", ""))
    return ObjectInfo(
        key=key,
        size=size,
        etag=etag,
        last_modified_ns=http_date_ns(answer.get("last-modified", "")),
        version_id=answer.get("x-amz-version-id"),
        storage_class=headers.storage_class,
        headers=headers,
        etag_is_md5=is_md5_etag(etag) and not has_foreign_etag(answer),
        tag_count=whole_number(answer.get("x-amz-tagging-count", "")),
        archive=archive_state(answer),
    )


def archive_state(answer: Mapping[str, str]) -> str | None:
    """What an answer to HEAD tells of an archived object; ``None`` of one that can be read as ever.

    >>> archive_state({"x-amz-storage-class": "GLACIER"})
    'archived'
    >>> archive_state({"x-amz-restore": 'ongoing-request="true"'})
    'restoring'
    >>> archive_state({"x-amz-restore": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"'})
    'restored until 2012-12-21T00:00:00Z'
    """
    told = dict(_RESTORE.findall(answer.get("x-amz-restore", "")))
    if told.get("ongoing-request") == "true":
        return "restoring"
    if told.get("ongoing-request") == "false":
        until_ns = http_date_ns(told.get("expiry-date", ""))
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until_ns // 10**9))
        return f"restored until {until}" if until_ns else "restored"
    is_archived = answer.get("x-amz-storage-class") in ARCHIVES or "x-amz-archive-status" in answer
    return "archived" if is_archived else None


def has_foreign_etag(answer: Mapping[str, str]) -> bool:
    """Encrypted with keys that S3 does not own alone: the ETag has the form of an MD5 and is none."""
    return answer.get(SSE, "").startswith("aws:") or f"{CUSTOMER}algorithm" in answer


def whole_number(text: str) -> int | None:
    """The number below 2**63 that plain digits tell; ``None`` for all else, which anybody may send.

    >>> [whole_number(t) for t in ("12", "-1", "1e9", "\u00b2", "9" * 5000)]
    [12, None, None, None, None]
    """
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX):
        return None
    found = int(text)
    return found if found < 1 << 63 else None


def bare_etag(value: str) -> str:
    """An entity tag without its quotes, and without the mark that a proxy which compresses may set before it.

    >>> bare_etag('"5f-2"'), bare_etag('W/"5f-2"'), bare_etag("5f-2")
    ('5f-2', '5f-2', '5f-2')
    """
    value = value.removeprefix("W/")
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def is_md5_etag(etag: str) -> bool:
    """Does ``etag`` look like the plain MD5 of the object's bytes?

    Necessary, not sufficient: with SSE-C or SSE-KMS it has the same shape and is no MD5.
    """
    return _MD5.fullmatch(etag) is not None


@lru_cache(maxsize=4096)
def http_date_ns(value: str) -> int:
    """Nanoseconds since the epoch of an HTTP date; 0 for an empty or unreadable one.

    The fixed form (RFC 9110, IMF-fixdate) is read by position: 2 us, email.utils takes 12.
    """
    try:
        if len(value) == 29 and value.endswith(" GMT"):
            month = _MONTHS[value[8:11]]
            fields = (int(value[12:16]), month, int(value[5:7]))
            clock = (int(value[17:19]), int(value[20:22]), int(value[23:25]))
            seconds = calendar.timegm(fields + clock)
        else:
            seconds = int(parsedate_to_datetime(value).timestamp()) if value else 0
        return clamped_ns(seconds * 1_000_000_000, DATE_NS_MAX)
    except (ValueError, KeyError, TypeError, OverflowError):
        return 0


def iso_date_ns(value: str) -> int:
    """Nanoseconds since the epoch of S3's XML dates, as ``2026-11-21T01:02:03.456Z``.

    Raises ServerFaultError when it is none.
    """
    try:
        fields = (int(value[0:4]), int(value[5:7]), int(value[8:10]))
        clock = (int(value[11:13]), int(value[14:16]), int(value[17:19]))
        fraction = value[20:].rstrip("Z") if value[19:20] == "." else ""
        nanoseconds = int(fraction.ljust(9, "0")[:9]) if fraction else 0
        seconds = calendar.timegm(fields + clock)
        return clamped_ns(seconds * 1_000_000_000 + nanoseconds, DATE_NS_MAX)
    except ValueError:
        raise ServerFaultError(f"the store sent {value[:40]!r} as a date") from None
