"""Where the parts of a multipart upload begin and end.

The plan depends on the first part's size alone, never on the file's: a file that is uploaded
while it grows keeps the boundaries of the parts that are already sent.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from s3mount.config import PART_BYTES_MAX, PART_BYTES_MIN
from s3mount.errors import UsageError
from s3mount.refs import ByteRange

PARTS_MAX = 10_000
OBJECT_BYTES_MAX = 5 << 40
"""S3's greatest object (AWS S3 User Guide, "Amazon S3 multipart upload limits")."""

STEP_PARTS = 900
"""Parts of one size; then the size doubles.

With 900 and the least part size of 5 MiB, 10,000 parts hold 9.2 TiB, so 5 TiB always fit; with
1,000 they would hold 4.9.
"""


class PartPlan(msgspec.Struct, frozen=True):
    """Parts of ``part_bytes``, of twice that after ``step_parts``, and so on, at most 5 GiB each.

    Parts are counted from 0 here; S3's part numbers are one more. Other tools make them all of one size: their
    plans have PARTS_MAX as ``step_parts``.
    """

    part_bytes: int
    step_parts: int = STEP_PARTS

    def __post_init__(self) -> None:
        """Raise UsageError for a size that S3 refuses."""
        if not PART_BYTES_MIN <= self.part_bytes <= PART_BYTES_MAX:
            raise UsageError(f"part size {self.part_bytes}: S3 takes parts of 5 MiB to 5 GiB")

    def part_range(self, index: int) -> ByteRange:
        """The bytes of part ``index`` in a file without end. Raises ValueError for a negative one."""
        if index < 0:
            raise ValueError(f"part {index}")
        start, step, first = 0, 0, 0
        while index >= first + self.step_parts and self._size(step) < PART_BYTES_MAX:
            start += self.step_parts * self._size(step)
            first += self.step_parts
            step += 1
        size = self._size(step)
        return ByteRange(start + (index - first) * size, size)

    def part_of(self, offset: int) -> int:
        """The part that holds the byte at ``offset``. Raises ValueError for a negative one."""
        if offset < 0:
            raise ValueError(f"offset {offset}")
        start, step, first = 0, 0, 0
        while self._size(step) < PART_BYTES_MAX:
            stop = start + self.step_parts * self._size(step)
            if offset < stop:
                break
            start, step, first = stop, step + 1, first + self.step_parts
        return first + (offset - start) // self._size(step)

    def count(self, size_bytes: int) -> int:
        """How many parts a file of this size has; an empty one has one (empty) part."""
        return self.part_of(size_bytes - 1) + 1 if size_bytes > 0 else 1

    def ranges(self, size_bytes: int) -> Iterator[ByteRange]:
        """The parts of a file of this size, in order; none for an empty one."""
        for index in range(self.count(size_bytes) if size_bytes > 0 else 0):
            part = self.part_range(index)
            yield ByteRange(part.start, min(part.length, size_bytes - part.start))

    def _size(self, step: int) -> int:
        return min(self.part_bytes << step, PART_BYTES_MAX)
