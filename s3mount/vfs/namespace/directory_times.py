"""The times of directories: now when an entry comes or goes, and stored with their markers a little later."""

from __future__ import annotations

from s3mount.errors import LocalDiskError
from s3mount.spool.journal.changes import Put
from s3mount.spool.journal.states import State
from s3mount.tree.node import Node
from s3mount.vfs.state import MountState, changed

TOUCH_PERIOD_S = 1.0
"""Directory times reach their markers at most this often."""


class DirectoryTimes:
    """Which directories of one mount have times that their markers do not have yet."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._touched: dict[int, Node] = {}

    def forget(self, directory: Node) -> None:
        """``directory`` is gone, or what changed in it was given up: its times are not to be stored. Repeatable."""
        self._touched.pop(directory.inode, None)

    def touch(self, directory: Node) -> None:
        """An entry came or went: the directory's times are now, and attributes are stored below it."""
        known = directory.directory
        assert known is not None
        now_ns = self._state.now_ns()
        directory.attributes = changed(directory.attributes, mtime_ns=now_ns, ctime_ns=now_ns)
        if known.is_marker_closed:
            # Its times are not worth what another program stored with it.
            return
        if known.stores_attributes:
            self._touched[directory.inode] = directory
            return
        known.stores_attributes = True
        try:
            self.store(directory)
        except LocalDiskError:
            # What was to be done is done; the directory's times wait until the disk has room.
            self._touched[directory.inode] = directory

    def store(self, directory: Node) -> None:
        """Let the marker of ``directory`` carry its attributes. Raises LocalDiskError."""
        self._touched.pop(directory.inode, None)
        if not directory.linked:
            return
        directory.attributes_known = True
        key = self._state.change_key(directory)
        change = self._state.spool.changes.get(key)
        if isinstance(change, Put) and change.state is State.QUEUED:
            change.attributes = directory.attributes
            self._state.spool.record([change])
            return
        known = directory.directory
        expected = known.marker_etag or None if known is not None else None
        if change is not None:
            expected = change.expected
        self._state.spool.record(
            [
                Put(
                    key=key,
                    attributes=directory.attributes,
                    headers=directory.headers,
                    expected=expected,
                )
            ]
        )

    def store_touched(self) -> None:
        """Bring the times of directories that changed since the last call into their markers.

        Raises LocalDiskError; what could not be journalled is tried again by the next call.
        """
        for inode, directory in list(self._touched.items()):
            try:
                self.store(directory)
            except LocalDiskError:
                self._touched[inode] = directory
                raise
        self._touched.clear()
