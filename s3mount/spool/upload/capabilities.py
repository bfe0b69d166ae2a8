"""What the store honours, as far as it is known by now: one value for all parts of a mount, which serves before."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from s3mount.refs import Capabilities


class KnownCapabilities:
    """``seen`` is what was tried of the store; nothing before ``learn``.

    ``keeps_deleted``: the bucket keeps versions, so that a deletion destroys nothing. ``decided`` is set when all
    was tried that could be.
    """

    def __init__(self, *, keeps_deleted: bool = False) -> None:
        self.keeps_deleted = keeps_deleted
        self.seen = Capabilities()
        self.decided = trio.Event()
        self._is_told = False

    def learn(self, seen: Capabilities) -> None:
        """This was found by trying."""
        self.seen = seen
        self._is_told = True

    @property
    def etag_is_md5(self) -> bool:
        """Is it known to give the same bytes the same ETag again?"""
        return self.seen.etag_is_md5 is True

    @property
    def holds_markers(self) -> bool:
        """Can it hold the markers of folders? So it is taken to, until it is known."""
        return self.seen.markers is not False

    @property
    def markers_tell(self) -> bool:
        """Can a folder's marker tell that attributes are stored below it?"""
        return self.holds_markers and self.seen.marker_metadata is not False

    def told(self) -> dict[str, Any]:
        """All of it by name, as ``status`` tells it; nothing while nothing is known."""
        return msgspec.structs.asdict(self.seen) if self._is_told else {}
