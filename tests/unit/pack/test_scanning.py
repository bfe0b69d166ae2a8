"""Tar files that others wrote, read by their headers alone, whoever made them and whatever they say."""

from __future__ import annotations

import io
import itertools
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s3mount.errors import PackError
from s3mount.pack.entry import Entry
from s3mount.pack.headers import END, pax_header
from s3mount.pack.scanning import Scanner


class Source:
    """A file in memory, and what was asked of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    async def read_at(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        assert length > 0
        assert offset + length <= len(self.data)
        self.asked.append((offset, length))
        return self.data[offset : offset + length]


def scanned(data: bytes) -> tuple[list[Entry], dict[str, str], Source]:
    """The entries, what was refused and why, and the source."""
    source, refused = Source(data), dict[str, str]()
    entries: list[Entry] = []

    async def main() -> None:
        with trio.fail_after(20):
            entries.extend(await Scanner(source.read_at, len(data), refused.__setitem__).run())

    trio.run(main)
    return entries, refused, source


def gnu_tar(folder: Path, *options: str) -> bytes:
    done = subprocess.run(
        ["tar", "-C", str(folder), *options, "-cf", "-", "."],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return done.stdout


LONG = "/".join(["d" * 90] * 3) + "/" + "f" * 120


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / LONG).parent.mkdir(parents=True)
    (top / LONG).write_bytes(b"long")
    (top / "é blank").write_bytes(b"x" * 1000)
    (top / "empty").touch(mode=0o600)
    os.link(top / "é blank", top / "same")
    (top / "link").symlink_to("é blank")
    (top / "far").symlink_to("l" * 150)
    os.mkfifo(top / "pipe")
    os.utime(top / "empty", ns=(0, 1_500_000_000_250_000_000))
    return top


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar", "v7"])
def test_what_gnu_tar_writes_is_found_where_it_lies(tree: Path, form: str) -> None:
    if form in ("ustar", "v7"):
        shutil.rmtree(tree / LONG.partition("/")[0])
        (tree / "far").unlink()
    if form == "v7":
        (tree / "pipe").unlink()
    data = gnu_tar(tree, f"--format={form}", "--sort=name")
    entries, refused, _ = scanned(data)
    found = {entry.name: entry for entry in entries}
    for name, body in {"é blank": b"x" * 1000, "same": b"x" * 1000, "empty": b""}.items():
        entry = found[name]
        assert data[entry.body : entry.body + entry.size] == body
        assert entry.kind == "file"
    if form not in ("ustar", "v7"):
        assert data[found[LONG].body :][:4] == b"long"
        assert found["far"].target == "l" * 150
    assert (found["link"].kind, found["link"].target) == ("link", "é blank")
    assert found["empty"].permissions == 0o600
    part = 250_000_000 if form == "pax" else 0
    assert found["empty"].mtime_ns == 1_500_000_000 * 10**9 + part
    assert refused == ({} if form == "v7" else {"pipe": "a pipe"})


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_members_are_refused_with_the_reason_and_the_others_found(
    tmp_path: Path, form: str
) -> None:
    with open(tmp_path / "a-holes", "wb") as file:
        for place in range(40):
            os.pwrite(file.fileno(), b"x" * 4096, place << 20)
        file.truncate(64 << 20)
    (tmp_path / "b-after").write_bytes(b"after")
    data = gnu_tar(tmp_path, "-S", f"--format={form}", "--sort=name")
    assert len(data) < 10 << 20, "the file system keeps no holes"
    entries, refused, _ = scanned(data)
    assert list(refused.values()) == ["it is sparse: its bytes do not lie in a row"]
    (after,) = [entry for entry in entries if entry.name == "b-after"]
    assert data[after.body : after.body + 5] == b"after"


def test_bodies_are_hardly_fetched_and_headers_of_small_members_come_together() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(2000):
            info = tarfile.TarInfo(f"small/{number}")
            info.size = 100
            tar.addfile(info, io.BytesIO(bytes(100)))
        for number in range(20):
            info = tarfile.TarInfo(f"large/{number}")
            info.size = 3 << 20
            tar.addfile(info, io.BytesIO(bytes(3 << 20)))
    data = buffer.getvalue()
    entries, _, source = scanned(data)
    assert len(entries) == 2020
    assert len(source.asked) < 45
    assert sum(length for _, length in source.asked) < 5 << 20


def test_global_headers_count_for_all_that_follow() -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"mtime": "7.5"}
    ) as tar:
        for name in ("a", "b"):
            tar.addfile(tarfile.TarInfo(name))
    entries, _, _ = scanned(buffer.getvalue())
    assert [entry.mtime for entry in entries] == ["7.5", "7.5"]


def one(name: str, size: int, body: bytes = b"") -> bytes:
    header = pax_header(name, size, mode=0o644, mtime_ns=0)
    return header + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x1f\x8b" + bytes(1022), "packed by gzip"),
        (b"hello" * 300, "no tar file"),
        (one("a", 5, b"12345") + b"x" * 512, "damaged"),
        (one("a", 1000, b"x" * 400), "cut off"),
        (one("a", 5, b"12345") + one("b", 0)[:300], "cut off"),
        (one("a", 1 << 60), "cut off"),
        (one("a", 1 << 70), "no number"),
        (one("x" * 3000, 0)[:1024], "cut off"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_whole_tar_file_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(PackError, match=why):
        scanned(data)


def extension(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (extension(b"x", b"9999 path=a\n"), "pax header .* is damaged"),
        (extension(b"x", b"0 path=a\n"), "pax header .* is damaged"),
        (extension(b"x", b"12 path=a\n"), "pax header .* is damaged"),
        (extension(b"x", b"11 size=-5\n") + one("a", 0), "no number"),
        (extension(b"L", b"x" * (2 << 20)), "larger than any name"),
        (extension(b"L", b"", 1 << 50), "larger than any name"),
        (extension(b"L", b"", -5), "larger than any name"),
        (extension(b"K", b"x" * 512) * 2000, "larger than any name"),
    ],
    ids=itertools.count(),
)
def test_hostile_headers_are_bounded(data: bytes, why: str) -> None:
    with pytest.raises(PackError, match=why):
        scanned(data + END)


def test_names_that_cannot_be_are_refused_one_by_one() -> None:
    info = tarfile.TarInfo("good")
    bad = tarfile.TarInfo("\udcff")
    data = bad.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + info.tobuf() + END
    entries, refused, _ = scanned(data)
    assert [entry.name for entry in entries] == ["good"]
    assert refused == {"\udcff": "the name is not valid UTF-8, as keys are"}


@given(st.integers(0, 2**31), st.integers(1, 12))
@settings(max_examples=150)
@example(0, 1)
def test_damage_anywhere_ends_in_entries_inside_the_file_or_a_reason(
    seed: int, damages: int
) -> None:
    rng = random.Random(seed)
    data = bytearray(DAMAGED)
    for _ in range(damages):
        place = rng.randrange(len(data))
        data[place] = rng.choice((0, 0x20, 0x80, 0xFF, ord("7"), ord("x"), ord("S"), ord("L")))
        if rng.random() < 0.7:
            # With a sum that fits: the damage is read.
            start = place - place % 512
            block = data[start : start + 512]
            block[148:156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % (sum(block) & 0o777777)
    try:
        entries, _, source = scanned(bytes(data))
    except PackError:
        return
    assert all(0 <= each.header <= each.body <= each.stop <= len(data) for each in entries)
    assert len(source.asked) < 200


DAMAGED = (
    one("a", 700, b"x" * 700)
    + extension(b"L", b"y" * 600)
    + one("b", 10, b"0123456789")
    + one("long/" * 60 + "é", 3, b"123")
    + extension(b"S", b"", 0)
    + one("c", 0)
    + END
)
