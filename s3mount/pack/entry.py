"""What an index says of one name: where its bytes lie in the pack, what they are, or that it is deleted."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from s3mount.errors import UsageError

NAME_BYTES_MAX = 1024
"""As of a key in S3."""
INDEX_NAME = ".s3mount-pack-index.jsonl.gz"
"""The last member of a pack: the index of all before it."""
BLOCK_BYTES = 512
MODE = 0o644

Kind: TypeAlias = Literal["file", "folder", "link"]


class Entry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One line of an index; docs/PACKS.md tells of the fields.

    ``header`` is where the member's first header begins, ``body`` where its bytes do, both from the beginning of
    the pack. ``mtime`` is seconds since the epoch as a decimal number, ``mode`` permissions in octal, ``sha256`` in
    hex and empty where nobody read the bytes. ``order`` is empty where it is the pack's id. ``metadata`` and ``type``
    are what an object would have as user metadata and Content-Type; ``None`` where nobody told.
    """

    name: str
    header: int = 0
    body: int = 0
    size: int = 0
    sha256: str = ""
    mtime: str = ""
    mode: str = ""
    kind: Kind = "file"
    target: str = ""
    order: str = ""
    deleted: bool = False
    metadata: dict[str, str] | None = None
    type: str = ""

    @property
    def mtime_ns(self) -> int | None:
        """Nanoseconds since the epoch; ``None`` where it is not told, or told wrongly."""
        return time_ns(self.mtime)

    @property
    def permissions(self) -> int | None:
        """As for chmod; ``None`` where they are not told."""
        try:
            return int(self.mode, 8) & 0o7777
        except ValueError:
            return None

    @property
    def stop(self) -> int:
        """The first offset behind its bytes and what fills the last block."""
        return self.body + padded(self.size)


def padded(size: int) -> int:
    """``size`` with what fills its last block of 512 bytes.

    >>> [padded(n) for n in (0, 1, 512, 513)]
    [0, 512, 512, 1024]
    """
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def time_text(ns: int) -> str:
    """Nanoseconds as seconds in decimal, as short as can be.

    >>> [time_text(n) for n in (0, 1_500_000_000, -1, 1_000_000_000)]
    ['0', '1.5', '-0.000000001', '1']
    """
    seconds, rest = divmod(abs(ns), 1_000_000_000)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{'-' if ns < 0 else ''}{seconds}{fraction}"


def time_ns(text: str) -> int | None:
    """The reverse of ``time_text``, for what others wrote too; ``None`` for what is no such number.

    >>> [time_ns(t) for t in ("1.5", "-0.000000001", "", "x", "1.2.3", "7")]
    [1500000000, -1, None, None, None, 7000000000]
    """
    seconds, _, fraction = text.lstrip("-").partition(".")
    digits = seconds + fraction
    if not (digits.isascii() and digits.isdecimal()) or len(seconds) > 20:
        return None
    ns = int(seconds or 0) * 1_000_000_000 + int(f"{fraction[:9]:0<9}")
    return -ns if text.startswith("-") else ns


def why_no_name(name: str) -> str | None:
    """Why ``name`` can be no member of a pack, or ``None``."""
    if not name:
        return "an empty name"
    if name == INDEX_NAME:
        return f"{INDEX_NAME} is the name of a pack's own index"
    if "\0" in name:
        return "a name in a tar file cannot hold a NUL"
    if name.endswith("/"):
        return "a name that ends with / is a folder's"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "the name is not valid UTF-8, as keys are"
    if length > NAME_BYTES_MAX:
        return f"a name of {length} bytes: S3 takes {NAME_BYTES_MAX}"
    return None


def check_name(name: str) -> None:
    """Raises UsageError for what can be no member's name."""
    if (why := why_no_name(name)) is not None:
        raise UsageError(f"{name[:200]!r}: {why}")
