"""How many bytes of contents went to S3, and how many S3 copied itself instead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Of one mount since its start, by requests that were answered.

    ``copied_bytes`` are those of parts: what nobody changed of a large file, and the zeros of holes.
    """

    sent_bytes: int = 0
    copied_bytes: int = 0
