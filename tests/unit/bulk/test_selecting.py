from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from s3mount.bulk import selecting
from s3mount.bulk.location import S3Location, parse_s3
from s3mount.bulk.selecting import Item
from s3mount.errors import NetworkError, SourceError, UsageError
from s3mount.manifest.versions import version_scan
from s3mount.manifest.versions.key_pages import ObjectPages
from s3mount.patterns import PathFilter
from s3mount.refs import ListPage, ObjectHeaders, ObjectInfo
from s3mount.testing.memory_store import MemoryStore


def listed(store: MemoryStore, location: S3Location, **how: object) -> list[Item]:
    found: list[Item] = []

    async def take(batch: list[Item]) -> None:
        await trio.lowlevel.checkpoint()
        found.extend(batch)

    async def main() -> None:
        await selecting.objects(store, location, take, **how)  # type: ignore[arg-type]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return found


def holding(*keys: str) -> MemoryStore:
    store = MemoryStore(versioning="enabled")

    async def fill() -> None:
        for key in keys:
            await store.put(key, key.encode(), ObjectHeaders())

    trio.run(fill)
    return store


KEYS = ("a", "p/", "p/a.txt", "p/b/c.txt", "p/b/d.tmp", "pq", "p\uffff", "p😀")


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("s3://b", list(KEYS)),
        ("s3://b/p/", ["", "a.txt", "b/c.txt", "b/d.tmp"]),
        ("s3://b/p/*.t?t", ["a.txt", "b/c.txt"]),
        ("s3://b/p/b*/c*", ["b/c.txt"]),
        ("s3://b/x/", []),
    ],
)
def test_folders_and_patterns_name_what_lies_there(url: str, names: list[str]) -> None:
    assert [item.name for item in listed(holding(*KEYS), parse_s3(url))] == names


def test_filters_take_names_from_where_the_listing_began() -> None:
    takes = PathFilter([], ["/b", "a.txt"])
    found = listed(holding(*KEYS), parse_s3("s3://b/p/"), takes=takes)
    assert [item.url for item in found] == ["s3://b/p/"]


def test_a_folder_alone_shows_its_folders_once() -> None:
    keys = [f"p/d{n:03}/{m}" for n in range(30) for m in range(3)] + ["p/file", "q"]
    found = listed(holding(*keys), parse_s3("s3://b/p/"), delimiter="/")
    assert [item.name for item in found] == [*(f"d{n:03}/" for n in range(30)), "file"]
    assert [item.is_folder for item in found] == [True] * 30 + [False]


def test_versions_and_markers_are_told() -> None:
    store = holding("k", "k")
    trio.run(partial(store.delete, "k"))
    found = listed(store, parse_s3("s3://b"), with_versions=True)
    assert [(item.is_latest, item.is_delete_marker) for item in found] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    assert len({item.version_id for item in found}) == 3


class Generated(MemoryStore):
    """``count`` objects that are made as they are listed, with a round trip of 1 s."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.pages = 0

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        self.pages += max_keys > 1
        await trio.sleep(1)
        after = token if token is not None else start_after
        first = 0
        if after is not None:
            low, high = 0, self.count
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if self.key(middle) <= after else (low, middle)
            first = low
        stop = min(first + max_keys, self.count)
        keys = [self.key(n) for n in range(first, stop)]
        objects = tuple(ObjectInfo(key, 1, "e", 1) for key in keys)
        return ListPage(objects, (), keys[-1] if keys and stop < self.count else None)

    @staticmethod
    def key(n: int) -> str:
        return f"logs/{n // 1000:04}/{n % 1000:03}"


def test_a_listing_goes_in_parallel_and_in_order() -> None:
    store = Generated(60_000)
    began = trio.testing.MockClock(autojump_threshold=0)
    found = 0
    last = ""

    async def take(batch: list[Item]) -> None:
        nonlocal found, last
        await trio.lowlevel.checkpoint()
        assert [item.key for item in batch] == sorted(item.key for item in batch)
        assert batch[0].key > last
        last, found = batch[-1].key, found + len(batch)

    async def main() -> float:
        start = trio.current_time()
        await selecting.objects(store, parse_s3("s3://b"), take)
        return trio.current_time() - start

    seconds = trio.run(main, clock=began)
    assert found == 60_000
    assert seconds < 30  # one by one it takes 60


def test_who_takes_slowly_is_not_buried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows in memory are bounded while the first batch is being taken."""
    monkeypatch.setattr(version_scan, "ROWS_IN_MEMORY_MAX", 5000)
    monkeypatch.setattr(version_scan, "FIRST_ROWS_MAX", 2000)
    store = Generated(200_000)
    scan = version_scan.Scan(ObjectPages(store, ""))
    most = 0
    found = 0

    async def take(rows: list[ObjectInfo]) -> None:
        nonlocal most, found
        if not found:
            await trio.sleep(100)
        most = max(most, scan.rows_waiting)
        found += len(rows)

    async def main() -> None:
        await scan.run(take)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert found == 200_000
    assert most <= 5000 + 16 * 1000


def test_a_stream_ends_with_its_block_and_tells_its_error() -> None:
    async def produce(send: Callable[[int], Awaitable[None]]) -> None:
        for n in range(10):
            await send(n)
        raise NetworkError("gone")

    async def main() -> None:
        found = []
        async with selecting.streamed(produce) as numbers:
            async for n in numbers:
                found.append(n)
                if n == 3:
                    break
        assert found == [0, 1, 2, 3]

    async def to_the_end() -> None:
        async with selecting.streamed(produce) as numbers:
            async for _ in numbers:
                pass

    trio.run(main)
    with pytest.raises(NetworkError, match="gone"):
        trio.run(to_the_end)


# ----------------------------------------------------------------------------- local


def test_a_walk_is_in_the_order_of_keys(tmp_path: Path) -> None:
    names = ["a", "a-b", "a.d/x", "a0", "d/e/f", "d/e.g", "d.h", "z\uffff", "z😀", "é"]
    for name in [*names, "empty/"]:
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            place.mkdir()
        else:
            place.write_text(name)
    told: list[str] = []
    found = list(selecting.walk(str(tmp_path), lambda path, why: told.append(path)))
    assert [item.name for item in found] == sorted(names)
    assert [item.size for item in found] == [len(name.encode()) for name in sorted(names)]
    assert not told
    takes = PathFilter([], ["d/e", "*.h"])
    found = list(selecting.walk(f"{tmp_path}/", lambda path, why: None, takes=takes))
    assert {item.name for item in found} == set(names) - {"d/e/f", "d.h"}


class Asked(PathFilter):
    """A filter that notes what it is asked for."""

    def __init__(self, exclude: list[str]) -> None:
        super().__init__([], exclude)
        self.asked: list[str] = []

    def takes(self, path: str) -> bool:
        self.asked.append(path)
        return super().takes(path)


@pytest.mark.parametrize(
    ("exclude", "asked"),
    [
        (["big"], ["a", "d/b"]),
        (["big/"], ["a", "d/b"]),
        (["*", "!d"], ["a", "d/b"]),
        (["re:big/$"], ["a", "big/c", "big/e/f", "d/b"]),
        (["big/c"], ["a", "big/c", "big/e/f", "d/b"]),
    ],
)
def test_a_folder_that_is_excluded_is_not_looked_into(
    tmp_path: Path, exclude: list[str], asked: list[str]
) -> None:
    (tmp_path / "big/e").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    for name in ("a", "big/c", "big/e/f", "d/b"):
        (tmp_path / name).write_text("")
    takes = Asked(exclude)
    found = list(selecting.walk(str(tmp_path), lambda path, why: None, takes=takes))
    assert takes.asked == asked
    assert (takes.unmatched() == []) == (not exclude[0].startswith("re:"))
    assert [item.name for item in found] == [
        name for name in asked if PathFilter([], exclude).takes(name)
    ]


def test_what_is_included_is_found_in_any_folder(tmp_path: Path) -> None:
    """Failed before: folders whose own name was not included were passed over."""
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("a.txt", "d/b.txt", "d/c", "d/e/f.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "d/gone").symlink_to("nowhere")
    takes = PathFilter(["*.txt"], ["/a.txt"])
    told: list[str] = []
    found = selecting.walk(str(tmp_path), lambda path, why: told.append(path), takes=takes)
    assert [item.name for item in found] == ["d/b.txt", "d/e/f.txt"]
    assert not told


def test_a_walk_tells_what_it_cannot_take(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("x")
    (tmp_path / "link").symlink_to("d/file")
    (tmp_path / "d/circle").symlink_to("..")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with open(os.fsencode(tmp_path) + b"/\xff", "w"):
        pass
    told: dict[str, str] = {}
    found = list(selecting.walk(str(tmp_path), told.__setitem__))
    assert [item.name for item in found] == ["d/file", "link"]
    assert {os.path.basename(os.fsencode(path)) for path in told} == {
        b"circle",
        b"gone",
        b"fifo",
        b"\xff",
    }
    plain = selecting.walk(str(tmp_path), told.__setitem__, follow_links=False)
    assert [item.name for item in plain] == ["d/file"]
    with pytest.raises(SourceError, match="no folder"):
        list(selecting.walk(str(tmp_path / "d/file"), told.__setitem__))


def test_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\nb c\r\n\nd")
    (tmp_path / "g").write_bytes(b"a\nb\0c\0")
    names = partial(selecting.file_names, is_nul_separated=False)
    assert list(names(str(tmp_path / "f"))) == ["a", "b c", "d"]
    assert list(selecting.file_names(str(tmp_path / "g"), is_nul_separated=True)) == ["a\nb", "c"]
    with pytest.raises(SourceError):
        list(names(str(tmp_path / "h")))

    async def named(url: str) -> list[str]:
        found: list[Item] = []

        async def take(batch: list[Item]) -> None:
            await trio.lowlevel.checkpoint()
            found.extend(batch)

        await selecting.named_objects(parse_s3(url), names(str(tmp_path / "f")), take)
        return [item.url for item in found]

    assert trio.run(named, "s3://b/p/") == ["s3://b/p/a", "s3://b/p/b c", "s3://b/p/d"]
    with pytest.raises(UsageError, match="folder"):
        trio.run(named, "s3://b/p")


def test_patterns_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("# none of\n*.tmp\n\n\\#x\nbuild/ \n")
    assert selecting.pattern_lines(str(tmp_path / "f")) == ["*.tmp", "#x", "build/"]
