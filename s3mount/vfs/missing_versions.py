"""Versions that S3 does not hand out (any more), archived ones too: named once in the log, and in the status."""

from __future__ import annotations

import logging
from typing import Any

import trio

from s3mount.errors import StoreError

log = logging.getLogger(__name__)

NAMED_MAX = 10_000
"""So many files are remembered as missing; of more only the number is."""
SHOWN_MAX = 50
BELIEVED_S = 10.0
"""A version that was refused is not asked for again for so long, as permissions may come back."""


class MissingVersions:
    """The files of a mount whose version is missing, forbidden or archived."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str | None, str, float]] = {}
        self._more = 0

    def note(self, path: str, version_id: str | None, why: str) -> None:
        """The version of the file at ``path`` cannot be had."""
        if path not in self._found:
            log.warning("%s: its version %s cannot be read: %s", path, version_id or "", why)
            if len(self._found) >= NAMED_MAX:
                self._more += 1
                return
        self._found[path] = (version_id, why, trio.current_time())

    def is_fresh(self, path: str) -> bool:
        """Was it refused just now?"""
        found = self._found.get(path)
        return found is not None and trio.current_time() - found[2] < BELIEVED_S

    def passed(self, path: str) -> None:
        """It can be read after all. Repeatable."""
        self._found.pop(path, None)

    def status(self) -> dict[str, Any]:
        """How many, and the first of them."""
        shown = [
            {"path": path, "version_id": version_id, "why": why}
            for path, (version_id, why, _) in list(self._found.items())[:SHOWN_MAX]
        ]
        return {"files": len(self._found) + self._more, "list": shown}


def why(error: StoreError) -> str:
    """The reason in a few words, with what S3 said."""
    said = f" ({error.status} {error.code})".replace(" )", ")") if error.status else ""
    return f"{error}{said}"
