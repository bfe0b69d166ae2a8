"""What a store lacks, in words."""

from __future__ import annotations

from typing import Any


def describe_lacks(honours: dict[str, Any]) -> list[str]:
    """What a store lacks that a user should know of, each to be read behind "this store"."""
    lacks = []
    if honours.get("may_write") is False:
        lacks.append(
            "lets these credentials write nothing: what is written waits in the spool until "
            "s3:PutObject is allowed; s3mount mount --read-only refuses it at once"
        )
    if honours.get("atomic") is False:
        lacks.append(
            "honours conditions, but not atomically: of several writers that create or change "
            "the same key at once, more than one may win, and only the last one's file is kept"
        )
    if honours.get("content_md5") is False and not honours.get("checksum"):
        lacks.append(
            "verifies no checksum"
            if honours.get("etag_is_md5") is False
            else "verifies no checksum; the ETag that it tells is compared with what was sent"
        )
    if honours.get("part_copies") is False:
        lacks.append("copies no parts: a small change of a large file fetches and sends all of it")
    if honours.get("markers") is False:
        lacks.append(
            "cannot hold the markers of folders: empty folders, and the attributes of folders, "
            "last until the unmount"
        )
    elif honours.get("marker_metadata") is False:
        lacks.append("drops what is stored with markers of folders: each file is asked for its own")
    past = lack_of_past(honours)
    return [*lacks, past] if past else lacks


def lack_of_past(honours: dict[str, Any]) -> str:
    """Why the past of a bucket cannot be shown; empty where it can."""
    if honours.get("lists_versions") is False:
        return "lists no versions: it has no past to be shown"
    if honours.get("version_dates") is False:
        return "lists its versions incompletely or under wrong dates: what it held at a time cannot be told"
    return ""
