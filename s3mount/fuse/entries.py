"""What the kernel is told of inodes, of directories' own entries, and of the room there is."""

from __future__ import annotations

import secrets

import pyfuse3
from pyfuse3 import EntryAttributes

from s3mount.vfs.view import Entry

BLOCK_BYTES = 512
"""Unit of st_blocks."""
PREFERRED_IO_BYTES = 1 << 20
CAPACITY_BYTES = 1 << 50
"""What statfs claims: S3 has no limit, but tools want to see room."""
GENERATION = secrets.randbits(31) | 1
"""Another one for each mount: inode numbers begin again, and a file handle from before (an NFS server gives such
to its clients) is then ESTALE and not another file. The kernel keeps 32 bits of it."""
DOTS = 2
"""A directory's names follow after so many entries: "." and ".."."""


def entry_of(shown: Entry) -> EntryAttributes:
    """An entry of a view as the kernel takes it.

    A directory's one link tells tools that its subdirectories are not counted, as on btrfs.
    """
    attributes, size = shown.attributes, shown.size
    entry = EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(shown.inode)
    entry.generation = GENERATION
    entry.entry_timeout = shown.name_valid_s
    entry.attr_timeout = shown.attributes_valid_s
    entry.st_mode = pyfuse3.ModeT(attributes.mode)
    entry.st_nlink = shown.links
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = size
    entry.st_blksize = PREFERRED_IO_BYTES
    entry.st_blocks = -(-size // BLOCK_BYTES)
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry


def reply_dots(
    token: pyfuse3.ReaddirToken, start_id: int, own: EntryAttributes, parent: EntryAttributes
) -> bool:
    """Send those of "." and ".." that are due from ``start_id`` on; ``False`` when there is no room for them.

    Programs expect them of readdir() and the kernel does not add them. It counts no lookup for them
    (``fuse_direntplus_link`` in Linux's fs/fuse/readdir.c).
    """
    entries = ((b".", own), (b"..", parent))
    return all(
        pyfuse3.readdir_reply(token, name, entry, number + 1)
        for number, (name, entry) in enumerate(entries)
        if number >= start_id
    )
