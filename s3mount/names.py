"""Which text can be the name of a file, which keys are therefore paths, and what a folder's prefix is."""

from __future__ import annotations

import os
import re
import time

NAME_BYTES_MAX = 255
"""Linux's NAME_MAX."""

OWN_NAME = ".s3mount"
"""The one name at the mount's top that is s3mount's own and not shown. The bucket's top has no key that
could carry its attributes: they lie in the marker ``.s3mount/``. What is tried at the start is tried below it."""


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


def normal_prefix(text: str) -> str:
    """The prefix of the keys in the folder that ``text`` means: empty, or with one / at its end alone.

    >>> [normal_prefix(t) for t in ("", "/", "data", "data/", "/data", "a/b//")]
    ['', '', 'data/', 'data/', 'data/', 'a/b/']
    """
    stripped = text.strip("/")
    return f"{stripped}/" if stripped else ""


TRIAL_PREFIX = f"{OWN_NAME}/probe-"
"""Below a mount's top: keys under which it tries what the store honours, removed again at once."""


def trial_key(prefix: str) -> str:
    """A new one below the prefix of a mount."""
    return f"{prefix}{TRIAL_PREFIX}{os.getpid()}-{time.time_ns():x}"


_TRIAL = re.compile(r"(?:^|/)\.s3mount/probe-[0-9]+-[0-9a-f]+(?:\.|/|$)")


def is_trial_key(key: str) -> bool:
    """Is ``key`` one under which a mount tries the store? Such keys are nobody's files.

    >>> [is_trial_key(t) for t in (".s3mount/probe-7-1f.copy", "a/.s3mount/probe-7-1f", ".s3mount/probe-x", "b")]
    [True, True, False, False]
    """
    return ".s3mount/probe-" in key and _TRIAL.search(key) is not None
