"""Entries that are only listed: packed, found, unpacked, and dropped when there is no room."""

from __future__ import annotations

import stat
import sys

import pytest

from s3mount.refs import Attributes, ObjectInfo
from s3mount.tree.dropped import DroppedDirectories, Place
from s3mount.tree.node import Block, Node
from s3mount.tree.nodes import BLOCK_ENTRIES_MIN, Nodes

FOLDER = Attributes(stat.S_IFDIR | 0o755, 1, 1, 5, 5, 5)


def file_attributes(last_modified_ns: int) -> Attributes:
    return Attributes(stat.S_IFREG | 0o644, 1, 1, last_modified_ns, 5, 5)


def info(key: str, size: int = 3, etag: str = "") -> ObjectInfo:
    return ObjectInfo(key, size, etag or f"{size:032x}", 1000 + size)


def make(count: int = 10, *, prefix: str = "d/", needed: str = "") -> tuple[Nodes, Node, Block]:
    nodes = Nodes("", FOLDER, file_attributes, lambda node: node.name == needed)
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
def test_any_etag_and_name_is_kept(etag: str) -> None:
    nodes = Nodes("", FOLDER, file_attributes)
    names = sorted(["a", "a b", "ä", "z\U0010ffff", "\x01", "x" * 255])
    entries = [(name, ObjectInfo(name, 1 << 40, etag, -1)) for name in names]
    nodes.add_listed(nodes.root, list(entries))
    assert nodes.root.directory is not None
    for name, wanted in entries:
        node = nodes.root.directory.children[name]
        assert node.content == wanted.ref
        assert node.last_modified_ns == -1


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
    nodes, folder, block = make(100, needed="n00001")
    assert folder.directory is not None
    folder.directory.listed_at = 1.0
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


def nested(nodes: Nodes, names: list[str]) -> list[int]:
    """Directories in each other, each listed with some others; their inodes, which the kernel holds."""
    inodes = []
    at = nodes.root
    for name in names:
        nodes.add_listed(at, sorted((each, None) for each in (name, "p", "q", "r", "s")))
        assert at.directory is not None
        at.directory.listed_at = 1.0
        nodes.use(at)
        at = at.directory.children[name]
        at.lookups = 1
        inodes.append(at.inode)
    return inodes


def drop_all(nodes: Nodes) -> None:
    nodes.bytes_max = 0
    for _ in range(10):
        nodes._trim_from = 0.0
        nodes.trim()
    assert nodes.unpacked < 3


def test_a_directory_that_somebody_stands_in_comes_back_by_its_number() -> None:
    nodes = Nodes("", FOLDER, file_attributes)
    inodes = nested(nodes, [f"d{number}" for number in range(600)])
    drop_all(nodes)
    assert len(nodes.dropped_directories) == 600
    node = nodes.get(inodes[-1])
    assert nodes.key_of(node) == "".join(f"d{number}/" for number in range(600))
    assert nodes.get(inodes[300]).lookups == 1
    assert len(nodes.dropped_directories) == 0
    del node


def test_a_dropped_directory_keeps_its_number_when_it_is_listed_again() -> None:
    nodes = Nodes("", FOLDER, file_attributes)
    inodes = nested(nodes, ["a", "b", "c"])
    drop_all(nodes)
    nodes.add_listed(nodes.root, [(name, None) for name in "apqrst"])
    assert nodes.root.directory is not None
    again = nodes.root.directory.children["a"]
    assert (again.inode, again.lookups) == (inodes[0], 1)
    assert nodes.add(again, "b", FOLDER).inode == inodes[1]
    assert nodes.key_of(nodes.get(inodes[2])) == "a/b/c/"


def test_a_dropped_directory_that_went_meanwhile_is_forgotten() -> None:
    nodes = Nodes("", FOLDER, file_attributes)
    inodes = nested(nodes, ["a", "b"])
    drop_all(nodes)
    nodes.add_listed(nodes.root, [(name, None) for name in "pqrst"])
    assert nodes.root.directory is not None
    nodes.root.directory.listed_at = 2.0
    for inode in reversed(inodes):
        with pytest.raises(KeyError):
            nodes.get(inode)
    other = nested(Nodes("", FOLDER, file_attributes), ["a"])
    nodes = Nodes("", FOLDER, file_attributes)
    assert nested(nodes, ["a"]) == other
    drop_all(nodes)
    nodes.forget(other[0], 1)
    with pytest.raises(KeyError):
        nodes.get(other[0])


def test_no_more_places_are_remembered_than_may_be() -> None:
    dropped = DroppedDirectories(places_max=3)
    for number in range(5):
        dropped.remember(number, Place(1, f"d{number}", 2))
    assert len(dropped) == 3
    assert dropped.take(1) is None
    assert dropped.take_at(1, "d0") is None
    dropped.forget(2, 1)
    assert dropped.take_at(1, "d2") == (2, 1)
    dropped.remember(9, Place(1, "d3", 7))
    assert dropped.take(3) is None, "another has its place now"
    dropped.forget(9, 7)
    assert dropped.take(9) is None


def test_a_million_entries_are_small() -> None:
    nodes, _, block = make(10_000)
    assert block.size_bytes < 60 * 10_000
    assert nodes.size_bytes < 60 * 10_000 + 5_000
    packed = (block._names, block._offsets, block._etags, block.sizes, block.last_modified_ns)
    taken = sum(map(sys.getsizeof, packed)) + 2 * len(block)
    assert 0.8 < block.size_bytes / taken < 1.2, "what is told is what is taken"
