"""Which parts of a multipart upload the store holds. Pure state, without I/O."""

from __future__ import annotations

from collections.abc import Sequence

from s3mount.flow.parts import PartPlan
from s3mount.refs import ByteRange, PartInfo


class PartLedger:
    """The parts that were confirmed, by index (from 0; S3's part numbers are one more).

    The plan fixes where each part begins and how long it is, so that a file may grow while its
    first parts are sent already. Only the last part may be shorter than planned.
    """

    def __init__(self, plan: PartPlan) -> None:
        self.plan = plan
        self._sent: dict[int, PartInfo] = {}

    def part_range(self, index: int, size: int) -> ByteRange:
        """The bytes of part ``index`` in a file of ``size`` bytes.

        Raises ValueError for a part that such a file does not have.
        """
        if index >= self.plan.count(size):
            raise ValueError(f"a file of {size} bytes has no part {index}")
        part = self.plan.part_range(index)
        return ByteRange(part.start, min(part.length, size - part.start))

    def confirm(self, part: PartInfo) -> None:
        """The store holds ``part``, in place of what it held under this number."""
        self._sent[part.number - 1] = part

    def forget(self, index: int) -> None:
        """It is no longer known what the store holds there."""
        self._sent.pop(index, None)

    def replace(self, parts: Sequence[PartInfo]) -> None:
        """The store itself says what it holds: exactly this."""
        self._sent = {part.number - 1: part for part in parts}

    @property
    def parts(self) -> dict[int, PartInfo]:
        """All confirmed parts by index, in order."""
        return dict(sorted(self._sent.items()))

    def missing(self, size: int) -> list[int]:
        """Parts that a file of ``size`` bytes needs and the store does not hold in that length."""
        lacking = []
        for index in range(self.plan.count(size)):
            part = self._sent.get(index)
            if part is None or part.size != self.part_range(index, size).length:
                lacking.append(index)
        return lacking

    def superfluous(self, size: int) -> list[int]:
        """Confirmed parts that lie behind the end of a file of ``size`` bytes."""
        count = self.plan.count(size)
        return sorted(index for index in self._sent if index >= count)

    def to_complete(self, size: int) -> tuple[PartInfo, ...]:
        """What CompleteMultipartUpload names, in order.

        Raises ValueError while a part is missing.
        """
        lacking = self.missing(size)
        if lacking:
            raise ValueError(f"parts {lacking[:5]} of {self.plan.count(size)} are not sent yet")
        return tuple(self._sent[index] for index in range(self.plan.count(size)))
