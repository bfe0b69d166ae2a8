"""Which parts of a file, that may grow or change meanwhile, S3 already has: the state of one multipart upload."""

from __future__ import annotations

from collections.abc import Callable

from s3mount.flow.parts import PartPlan
from s3mount.refs import ByteRange, Key, PartInfo


class PartsUpload:
    """One multipart upload of one file, without any I/O. Parts are counted from 0; S3's numbers are one more.

    A part is *sent* when S3 confirmed the bytes that the file holds now. ``wrote`` and ``cut`` take
    back what they touch, also of parts that are on their way (those count as unsent when they arrive).
    ``on_forgotten`` names whom to tell of every sent part that is taken back, at once.
    ``is_confirmed``: S3 was asked for the parts that an earlier run sent. ``completing``: the parts
    that the last try to complete it named. ``has_copies``: it was begun as one that takes copied parts.
    """

    def __init__(self, key: Key, plan: PartPlan) -> None:
        self.key = key
        self.plan = plan
        self.upload_id = ""
        self.sent: dict[int, PartInfo] = {}
        self.sending: set[int] = set()
        self.is_confirmed = True
        self.has_copies = False
        self.completing: list[PartInfo] | None = None
        self._stale: set[int] = set()
        self._forgot: Callable[[int], None] = lambda number: None

    def on_forgotten(self, forgot: Callable[[int], None]) -> None:
        """Call ``forgot(part number)`` for every sent part whose bytes change."""
        self._forgot = forgot

    def wrote(self, start: int, stop: int) -> None:
        """Bytes ``[start, stop)`` of the file changed."""
        if stop > start and (self.sent or self.sending):
            for index in range(self.plan.part_of(start), self.plan.part_of(stop - 1) + 1):
                self._take_back(index)

    def cut(self, size: int) -> None:
        """The file was cut to ``size``."""
        touched = self.plan.part_of(size) if size else 0
        for index in [*self.sent, *self.sending]:
            if index >= touched:
                self._take_back(index)

    def _take_back(self, index: int) -> None:
        if self.sent.pop(index, None) is not None:
            self._forgot(index + 1)
        if index in self.sending:
            self._stale.add(index)

    def begin(self, index: int) -> bool:
        """Part ``index`` is about to be read and sent. ``False``: it was sent, or is on its way, by somebody else.

        Two requests for one part could not be told apart: which bytes S3 has would be open.
        """
        if index in self.sending or index in self.sent:
            return False
        self.sending.add(index)
        return True

    def arrived(self, index: int, part: PartInfo) -> bool:
        """S3 confirmed part ``index``; does it hold what the file holds now?"""
        self.sending.discard(index)
        if index in self._stale:
            self._stale.discard(index)
            return False
        self.sent[index] = part
        return True

    def ended(self, index: int) -> None:
        """The request for part ``index`` ended; unless it ``arrived``, S3 does not have the part."""
        self.sending.discard(index)
        self._stale.discard(index)

    def span(self, index: int, size: int) -> ByteRange:
        """The bytes of part ``index`` in a file of ``size`` bytes, at its end fewer than planned or none."""
        planned = self.plan.part_range(index)
        return ByteRange(planned.start, max(0, min(planned.stop, size) - planned.start))

    def unsent(self, size: int) -> list[int]:
        """Indexes of the parts of a file of ``size`` bytes that are neither sent nor on their way."""
        return [
            index
            for index in range(self.plan.count(size))
            if index not in self.sent and index not in self.sending
        ]

    def finished_parts(self, size: int) -> list[PartInfo] | None:
        """All parts in order once everything of a file of ``size`` bytes is sent, else ``None``."""
        if self.sending:
            return None
        count = self.plan.count(size)
        if any(index not in self.sent for index in range(count)):
            return None
        return [self.sent[index] for index in range(count)]
