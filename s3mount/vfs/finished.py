"""Which keys were finished while something was under way: what S3 listed meanwhile may be either state."""

from __future__ import annotations

import weakref

from s3mount.refs import Key


class Watch:
    """Collects the keys that are finished as long as it is held."""

    __slots__ = ("__weakref__", "keys")

    def __init__(self) -> None:
        self.keys: set[Key] = set()

    def saw_below(self, prefix: Key) -> bool:
        """Was any key that begins with ``prefix`` finished since the watch began?"""
        return any(key.startswith(prefix) for key in self.keys)


class FinishedKeys:
    """Tells every watch that is held by somebody."""

    def __init__(self) -> None:
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def note(self, key: Key) -> None:
        """The change of ``key`` was finished, or what S3 has under it was looked at just now."""
        for watch in self._watches:
            watch.keys.add(key)

    def watch(self) -> Watch:
        """A new watch, from now on until nobody holds it any more."""
        watch = Watch()
        self._watches.add(watch)
        return watch
