"""Names, listings, nodes and the memory of HEADs."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from s3mount.refs import Attributes, ObjectHeaders, ObjectInfo
from s3mount.testing.memory_store import MemoryStore
from s3mount.tree.listing import list_directory, list_subtree
from s3mount.tree.memory import HeadMemory
from s3mount.tree.names import check_key, is_name, name_of
from s3mount.tree.nodes import Nodes
from tests.sim.world import VirtualClock, simulated

FILE = Attributes(stat.S_IFREG | 0o644, 0, 0, 0, 0, 0)
FOLDER = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0)


def test_names_from_the_kernel() -> None:
    assert name_of("ä".encode()) == "ä"
    for raw, number in ((b"\xff", errno.EILSEQ), (b"x" * 256, errno.ENAMETOOLONG)):
        with pytest.raises(OSError, match=r".") as caught:
            name_of(raw)
        assert caught.value.errno == number
    assert check_key("k" * 1024)
    with pytest.raises(OSError, match="1,024"):
        check_key("ä" * 513)
    assert is_name("ä" * 127)
    assert not is_name("ä" * 128)


@simulated
async def test_a_listing_tells_files_folders_marker_and_what_is_no_path() -> None:
    store = MemoryStore(clock=VirtualClock())
    keys = ("d/", "d/f", "d/sub/x", "d/both", "d/both/x", "d//", "d//y", "d/../z", "e")
    for key in keys:
        await store.put(key, b"", ObjectHeaders())
    listing = await list_directory(store, "d/")
    assert set(listing.files) == {"f"}
    assert listing.directories == {"sub", "both"}
    assert listing.marker is not None
    assert sorted(listing.ignored) == ["d/../", "d//", "d/both"]
    assert {info.key for info in await list_subtree(store, "d/")} == set(keys) - {"e"}


@simulated
async def test_a_long_listing_takes_a_request_for_a_thousand_names() -> None:
    store = MemoryStore(clock=VirtualClock())
    for number in range(2500):
        await store.put(f"d/{number:05}", b"", ObjectHeaders())
    listing = await list_directory(store, "d/")
    assert (len(listing.files), listing.pages) == (2500, 3)


def test_nodes_have_keys_places_and_lives() -> None:
    nodes = Nodes("prefix/", FOLDER)
    folder = nodes.add(nodes.root, "d", FOLDER)
    file = nodes.add(folder, "f", FILE)
    assert (nodes.key_of(nodes.root), nodes.key_of(folder)) == ("prefix/", "prefix/d/")
    assert nodes.key_of(file) == "prefix/d/f"
    file.lookups = 2
    nodes.move(file, nodes.root, "g")
    assert nodes.key_of(file) == "prefix/g"
    nodes.unlink(file)
    assert nodes.get(file.inode) is file, "the kernel knows it still"
    nodes.forget(file.inode, 2)
    with pytest.raises(KeyError):
        nodes.get(file.inode)
    again = nodes.add(nodes.root, "g", FILE)
    assert again.inode > file.inode
    assert file.is_inside(nodes.root) or not file.linked
    assert folder.is_inside(nodes.root)


def test_a_new_version_of_a_name_leaves_the_old_node_to_its_holders() -> None:
    nodes = Nodes("", FOLDER)
    old = nodes.add(nodes.root, "f", FILE)
    old.lookups = 1
    new = nodes.add(nodes.root, "f", FILE)
    assert not old.linked
    assert new.linked
    assert nodes.root.directory is not None
    assert nodes.root.directory.children == {"f": new}


def head(key: str, etag: str, modified_s: int, **metadata: str) -> ObjectInfo:
    return ObjectInfo(key, 1, etag, modified_s * 10**9, headers=ObjectHeaders(metadata=metadata))


def test_heads_are_remembered_by_version(tmp_path: Path) -> None:
    memory = HeadMemory(tmp_path / "heads.sqlite")
    memory.remember([head("a", "e", 5, mode="1"), ObjectInfo("listed", 1, "e", 0)])
    memory.close()
    again = HeadMemory(tmp_path / "heads.sqlite")
    found = again.recall("a", "e", 5 * 10**9 + 123)
    assert found is not None
    assert found.metadata == {"mode": "1"}
    assert again.recall("a", "other", 5 * 10**9) is None
    assert again.recall("a", "e", 6 * 10**9) is None
    assert again.recall("listed", "e", 0) is None
    again.remember([head("a", "e", 5, mode="2")])
    assert again.recall("a", "e", 5 * 10**9) == ObjectHeaders(metadata={"mode": "2"})
    again.forget("a")
    assert again.recall("a", "e", 5 * 10**9) is None
    again.remember([head("a", "e", 5, mode="2")])
    again.close()
    assert again.recall("a", "e", 5 * 10**9) is None


def test_a_damaged_memory_is_worked_without(tmp_path: Path) -> None:
    memory = HeadMemory(tmp_path / "heads.sqlite")
    assert memory._database is not None
    memory._database.execute("DROP TABLE head")
    memory.remember([head("a", "e", 5)])
    memory.flush()
    assert memory.recall("a", "e", 5 * 10**9) is None
    memory.close()


def test_what_may_still_change_within_its_second_is_not_written_yet(tmp_path: Path) -> None:
    memory = HeadMemory(tmp_path / "heads.sqlite")
    memory.remember([head("old", "e", 5), head("new", "e", 9)])
    memory.flush(9 * 10**9)
    killed = HeadMemory(tmp_path / "heads.sqlite")
    assert killed.recall("old", "e", 5 * 10**9) is not None
    assert killed.recall("new", "e", 9 * 10**9) is None
    assert memory.recall("new", "e", 9 * 10**9) is not None
    killed.close()
    memory.close()
