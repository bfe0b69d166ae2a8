"""Entries that are only listed: packed, found, unpacked, and dropped when there is no room."""

from __future__ import annotations

import stat
import sys

import pytest

from s3mount.refs import Attributes, ObjectInfo
from s3mount.tree.block import Block
from s3mount.tree.nodes import BLOCK_ENTRIES_MIN, Node, Nodes

FOLDER = Attributes(stat.S_IFDIR | 0o755, 1, 1, 5, 5, 5)


def file_attributes(last_modified_ns: int) -> Attributes:
    return Attributes(stat.S_IFREG | 0o644, 1, 1, last_modified_ns, 5, 5)


def info(key: str, size: int = 3, etag: str = "") -> ObjectInfo:
    return ObjectInfo(key, size, etag or f"{size:032x}", 1000 + size, storage_class=None)


def make(count: int = 10, *, prefix: str = "d/") -> tuple[Nodes, Node, Block]:
    nodes = Nodes("", FOLDER, file_attributes)
    folder = nodes.add(nodes.root, "d", FOLDER)
    entries: list[tuple[str, ObjectInfo | None]] = [
        (f"n{number:05}", None if number % 5 == 4 else info(f"{prefix}n{number:05}", number))
        for number in range(count)
    ]
    nodes.add_listed(folder, entries)
    assert folder.directory is not None
    return nodes, folder, folder.directory.children.blocks[0]


def test_entries_come_back_as_they_were_listed() -> None:
    nodes, folder, block = make()
    assert folder.directory is not None
    children = folder.directory.children
    assert sorted(children) == [f"n{number:05}" for number in range(10)]
    assert (len(children), len(nodes), nodes.unpacked) == (10, 12, 2)
    assert sorted(children.directories()) == ["n00004", "n00009"]
    assert "n00003" in children
    assert "n3" not in children
    assert block.find("n00011") == block.find("") == -1
    node = children["n00003"]
    assert node.inode == block.base + 3
    assert node.content == info("d/n00003", 3).ref
    assert (node.size, node.attributes.mtime_ns) == (3, 1003)
    assert not node.attributes_known
    assert children["n00003"] is node is nodes.get(node.inode)
    assert children["n00004"].is_directory
    assert (len(children), len(nodes), nodes.unpacked) == (10, 12, 4)


@pytest.mark.parametrize(
    "etag",
    ["0" * 31, "A" * 32, "a" * 32 + "-7", "", "ü", "0 " * 16, "d41d8cd98f00b204e9800998ecf8427e"],
)
def test_any_etag_name_and_class_is_kept(etag: str) -> None:
    nodes = Nodes("", FOLDER, file_attributes)
    names = sorted(["a", "a b", "ä", "z\U0010ffff", "\x01", "x" * 255])
    classes = [None, "GLACIER", None, "X", None, None]
    entries = [
        (name, ObjectInfo(name, 1 << 40, etag, -1, storage_class=kind))
        for name, kind in zip(names, classes, strict=True)
    ]
    nodes.add_listed(nodes.root, list(entries))
    assert nodes.root.directory is not None
    for name, wanted in entries:
        node = nodes.root.directory.children[name]
        assert node.content == wanted.ref
        assert (node.storage_class, node.last_modified_ns) == (wanted.storage_class, -1)


def test_the_kernels_references_go_to_the_node() -> None:
    nodes, folder, block = make()
    for _ in range(3):
        block.hold(3)
    nodes.forget(block.base + 3, 1)
    node = nodes.get(block.base + 3)
    assert node.lookups == 2
    nodes.unlink(node)
    assert nodes.get(node.inode) is node, "the kernel knows it still"
    nodes.forget(node.inode, 2)
    with pytest.raises(KeyError):
        nodes.get(node.inode)
    assert folder.directory is not None
    assert "n00003" not in folder.directory.children


def test_what_lost_its_place_is_not_found_by_its_number() -> None:
    nodes, folder, block = make()
    nodes.lose(block, 5)
    with pytest.raises(KeyError):
        nodes.get(block.base + 5)
    assert nodes.peek(block.base + 5) is None
    assert folder.directory is not None
    assert "n00005" not in folder.directory.children
    again = nodes.add(folder, "n00005", file_attributes(1))
    assert again.inode >= block.base + len(block)
    assert folder.directory.children["n00005"] is again


def test_a_moved_folder_takes_its_entries_along_as_they_are() -> None:
    nodes, folder, block = make()
    child = nodes.get(block.base + 4)
    nodes.add_listed(child, [(f"m{n}", info(f"d/n00004/m{n}")) for n in range(BLOCK_ENTRIES_MIN)])
    nodes.move(folder, nodes.root, "e")
    node = nodes.get(block.base + 3)
    assert nodes.key_of(node) == "e/n00003"
    assert node.content is not None
    assert node.content.key == "d/n00003", "where S3 has it still"
    assert child.directory is not None
    below = child.directory.children["m2"]
    assert (nodes.key_of(below), below.content and below.content.key) == (
        "e/n00004/m2",
        "d/n00004/m2",
    )


def test_there_is_room_for_what_is_used_last() -> None:
    nodes = Nodes("", FOLDER, file_attributes)
    nodes.bytes_max = 400_000
    folders = [(f"d{number:04}", None) for number in range(200)]
    nodes.add_listed(nodes.root, folders)
    inodes: set[int] = set()
    held = None
    for name, _ in folders:
        assert nodes.root.directory is not None
        folder = nodes.root.directory.children[name]
        assert folder.directory is not None
        inodes.add(folder.inode)
        nodes.add_listed(folder, [(f"f{n:03}", info(f"{name}/f{n:03}")) for n in range(100)])
        folder.directory.listed_at = 1.0
        block = folder.directory.children.blocks[0]
        assert not inodes & set(range(block.base, block.base + 100)), "never used twice"
        inodes |= set(range(block.base, block.base + 100))
        held = held or folder.directory.children["f007"]
        nodes.use(folder)
        del folder, block
        nodes.trim()
        assert nodes.size_bytes < 420_000
    assert nodes.dropped > 10_000
    assert nodes.unpacked < 80, "folders are entries again"
    assert held is not None
    assert nodes.get(held.inode) is held
    assert nodes.key_of(held) == "d0000/f007"
    assert nodes.root.directory is not None
    first = nodes.root.directory.children["d0001"]
    assert first.inode == nodes.root.directory.children["d0000"].inode + 1, "and keep their numbers"
    assert first.directory is not None
    assert first.directory.listed_at == float("-inf")


def test_what_is_needed_or_being_looked_at_is_not_dropped() -> None:
    nodes, folder, block = make(100)
    assert folder.directory is not None
    folder.directory.listed_at = 1.0
    nodes.is_needed = lambda node: node.name == "n00001"
    nodes.get(block.base + 1)
    nodes.get(block.base + 2)
    del block
    nodes.use(folder)
    nodes.bytes_max = 0
    nodes.trim()
    assert folder.directory.listed_at == 1.0, "this test holds the folder"
    children = folder.directory.children
    inode = folder.inode
    del folder
    other = nodes.add(nodes.root, "other", FOLDER)
    nodes.add_listed(other, [(f"n{number}", None) for number in range(1000)])
    nodes.trim()
    assert list(children) == ["n00001"]
    assert nodes.get(inode).directory is not None


def test_a_million_entries_are_small() -> None:
    nodes, _, block = make(10_000)
    assert block.size_bytes < 60 * 10_000
    assert nodes.size_bytes < 60 * 10_000 + 5_000
    packed = (block._names, block._offsets, block._etags, block.sizes, block.last_modified_ns)
    taken = sum(map(sys.getsizeof, packed)) + 2 * len(block)
    assert 0.8 < block.size_bytes / taken < 1.2, "what is told is what is taken"
