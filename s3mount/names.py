"""Which text can be the name of a file, and which keys are therefore paths."""

from __future__ import annotations

NAME_BYTES_MAX = 255
"""Linux's NAME_MAX."""


def is_name(text: str) -> bool:
    """Can ``text`` be the name of a file? Not empty, not ``.`` or ``..``, no NUL or slash, not too long.

    >>> [is_name(t) for t in ("a", "", ".", "..", "a/b", "x" * 256)]
    [True, False, False, False, False, False]
    """
    if not text or text in (".", "..") or "/" in text or "\0" in text:
        return False
    return (
        len(text) <= NAME_BYTES_MAX // 4 or len(text.encode("utf-8", "replace")) <= NAME_BYTES_MAX
    )
