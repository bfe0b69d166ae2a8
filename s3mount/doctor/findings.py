"""What one check found, and what to do about it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Level: TypeAlias = Literal["ok", "note", "warning", "fault"]


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check.

    ``level``: ``ok`` needs nothing, ``note`` tells a limit, ``warning`` works and will hurt, ``fault`` keeps a
    mount, or all that depends on it, from working. ``advice`` is what to do, empty where there is nothing.
    """

    check: str
    level: Level
    found: str
    advice: str = ""
