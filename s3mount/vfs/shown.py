"""What the kernel was just shown of files: their release waits until it has taken that in, for half a second.

Under the writeback cache Linux trusts its own size of a file, but for an inode that it has only just made: that gets
the size of the answer which made it. Where the inode of a written file goes away (after ``refresh``, or as memory was
short) before an answer that was given before the write is taken in, the file has its old size for the kernel, and the
next append overwrites what the last one wrote. An inode stays until the release of its file is answered; so that
answer, for which no program waits, is held back for as long as such an answer may be on its way.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from s3mount.tree.node import Node

TAKEN_IN_S = 0.5
"""So long after an answer its reader has most likely run. With 30 ms between a listing's answer and its reader, and
each write followed by a forgotten folder, one of 225 appends was lost; of 2,780 none where all releases waited
0.3 s."""
HELD_MAX = 4
"""So many at once: they are among the background requests (12 by default), as what is written back is too. Of more
files that are written at that moment, the later ones are not protected."""
SHOWN_MAX = 1000


class Shown:
    """Of one mount: when which directory was listed last, and which file was looked up while it was written."""

    def __init__(self) -> None:
        self._shown_at: OrderedDict[int, float] = OrderedDict()
        self._held: dict[int, trio.Event] = {}

    def note(self, node: Node) -> None:
        """An answer tells the size of ``node``, or of the entries in it."""
        self._shown_at[node.inode] = trio.current_time()
        self._shown_at.move_to_end(node.inode)
        if len(self._shown_at) > SHOWN_MAX:
            self._shown_at.popitem(last=False)

    async def outlast(self, node: Node) -> None:
        """Return when answers that told the size of ``node`` are taken in, or a later call waits for that.

        Not awaited where too many wait already. May be cancelled.
        """
        shown = [self._shown_at.get(each.inode) for each in (node, node.parent) if each is not None]
        until = max((at for at in shown if at is not None), default=float("-inf")) + TAKEN_IN_S
        earlier = self._held.pop(node.inode, None)
        if earlier is not None:
            earlier.set()
        if until <= trio.current_time() or len(self._held) >= HELD_MAX:
            return
        again = self._held[node.inode] = trio.Event()
        try:
            with trio.move_on_at(until):
                await again.wait()
        finally:
            if self._held.get(node.inode) is again:
                del self._held[node.inode]
