"""What lies in a tar file, from its headers alone: v7, ustar, pax and GNU tar, read from wherever ranges come.

The headers are read by ranges that grow while members are small, and are small while members are large: bodies are
hardly ever fetched. Whatever a file says, work and memory are bounded by its size.
"""

from __future__ import annotations

import tarfile
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from s3mount.errors import PackError
from s3mount.pack.entry import BLOCK_BYTES, INDEX_NAME, Entry, Kind, padded, time_text, why_no_name

WINDOW_BYTES_MIN = 4 << 10
WINDOW_BYTES_MAX = 1 << 20
EXTENSION_BYTES_MAX = 1 << 20
"""Of the headers before one member: a long name, a pax header."""

ReadAt: TypeAlias = Callable[[int, int], Awaitable[bytes]]
"""``read_at(offset, length)`` gives exactly those bytes of the file."""
Refuse: TypeAlias = Callable[[str, str], None]
"""Is told of a member that gets no entry, and why."""

_EXTENSIONS = (b"x", b"g", b"L", b"K", b"X")
_LINKS = {b"1", b"2"}
_OTHERS = {b"3": "a device", b"4": "a device", b"6": "a pipe", b"V": "a volume's label"}
_SPARSE = "it is sparse: its bytes do not lie in a row"
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZ": "bzip2",
    b"\xfd7": "xz",
    b"\x28\xb5": "zstd",
    b"\x04\x22": "lz4",
}


class _Window:
    """Bytes of the file at any place, asked for in ranges that follow how they are used."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self._read_at = read_at
        self._size = size
        self._start = 0
        self._data = b""
        self._length = WINDOW_BYTES_MIN

    async def get(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises PackError where the file is shorter."""
        if offset + length > self._size:
            raise PackError(f"the tar file is cut off: it ends at {self._size}, within a header")
        inside = offset - self._start
        if not 0 <= inside <= len(self._data) - length:
            is_near = offset - (self._start + len(self._data)) < self._length
            self._length = min(self._length * 2, WINDOW_BYTES_MAX) if is_near else WINDOW_BYTES_MIN
            wanted = min(max(self._length, length), self._size - offset)
            self._data = await self._read_at(offset, wanted)
            self._start, inside = offset, 0
        return self._data[inside : inside + length]


class Scanner:
    """Reads one tar file of ``size`` bytes. ``refuse`` is told of what gets no entry."""

    def __init__(self, read_at: ReadAt, size: int, refuse: Refuse) -> None:
        self._window = _Window(read_at, size)
        self._size = size
        self._refuse = refuse
        self._global: dict[str, str] = {}
        self._files: dict[str, Entry] = {}

    async def run(self) -> list[Entry]:
        """The entries, in the order of the file. Raises PackError for what is no tar file, or cut off."""
        entries: list[Entry] = []
        offset = 0
        while offset + BLOCK_BYTES <= self._size:
            found = await self._member(offset)
            if found is None:
                break
            entry, offset = found
            if entry is not None:
                entries.append(entry)
        if self._size % BLOCK_BYTES and offset + BLOCK_BYTES > self._size and offset < self._size:
            raise PackError(f"the tar file is cut off: it ends at {self._size}, within a header")
        return entries

    async def _member(self, start: int) -> tuple[Entry | None, int] | None:
        """The member whose headers begin at ``start``, and where the next one's do; ``None`` at the end."""
        records, is_sparse, offset = dict(self._global), False, start
        while True:
            block = await self._window.get(offset, BLOCK_BYTES)
            if not block.strip(b"\0"):
                return None
            header = _parsed(block, offset)
            offset += BLOCK_BYTES
            if header.type not in _EXTENSIONS:
                break
            data = await self._extension(header.size, offset, start)
            offset += padded(header.size)
            is_sparse |= self._extend(header.type, data, records, offset)
        info = _with(header, records, offset)
        if is_sparse or info.type == b"S" or any(k.startswith("GNU.sparse.") for k in records):
            after = await self._after_sparse(header, block, offset)
            stored = _size_of(records.get("size"), header.size, offset)
            self._refuse(info.name, _SPARSE)
            return None, self._stop(after, stored, info.name)
        if info.type == b"M":
            raise PackError(f"{info.name[:200]!r} began in another volume of a split tar file")
        has_body = info.type not in _LINKS and info.type not in _OTHERS and info.type != b"5"
        stop = self._stop(offset, info.size if has_body else 0, info.name)
        return self._entry(info, start, offset), stop

    async def _after_sparse(self, header: tarfile.TarInfo, block: bytes, offset: int) -> int:
        """Where the bytes of a sparse member of GNU tar's old form begin: behind the rest of its map."""
        is_extended = header.type == b"S" and bool(block[482])
        while is_extended:
            more = await self._window.get(offset, BLOCK_BYTES)
            offset += BLOCK_BYTES
            is_extended = bool(more[504])
        return offset

    async def _extension(self, size: int, offset: int, start: int) -> bytes:
        if not 0 <= size <= EXTENSION_BYTES_MAX or offset - start > EXTENSION_BYTES_MAX:
            raise PackError(f"the headers at {start} are larger than any name or attribute needs")
        return await self._window.get(offset, size) if size else b""

    def _extend(self, kind: bytes, data: bytes, records: dict[str, str], offset: int) -> bool:
        """Take a header in that says something of the next member, or of all; does it say that it is sparse?"""
        if kind in (b"L", b"K"):
            records["path" if kind == b"L" else "linkpath"] = _text(data.partition(b"\0")[0])
            return False
        found = dict(_records(data, offset))
        if kind == b"g":
            self._global.update(found)
        records.update(found)
        return any(keyword.startswith("GNU.sparse.") for keyword in found)

    def _stop(self, body: int, size: int, name: str) -> int:
        if size < 0 or body + size > self._size:
            raise PackError(
                f"the tar file is cut off or damaged: {name[:200]!r} would end at {body + size}, "
                f"the file ends at {self._size}"
            )
        return body + padded(size)

    def _entry(self, info: tarfile.TarInfo, start: int, body: int) -> Entry | None:
        name = info.name.removeprefix("./")
        kind: Kind = "file"
        if info.type in (b"5", b"D"):
            name, kind = name.rstrip("/"), "folder"
            if name in ("", "."):
                return None
        if name == INDEX_NAME:
            return None
        if info.type in _OTHERS or (why := why_no_name(name)):
            self._refuse(name, _OTHERS.get(info.type) or why or "")
            return None
        mtime, mode = info.pax_headers["mtime"], f"{info.mode & 0o7777:04o}"
        if info.type == b"1":
            return self._hard_link(name, info)
        if info.type == b"2":
            if why_no_name(info.linkname.rstrip("/")):
                self._refuse(name, "a link to a name that cannot be")
                return None
            return Entry(name, start, body, 0, "", mtime, mode, "link", info.linkname)
        size = info.size if kind == "file" else 0
        entry = Entry(name, start, body, size, "", mtime, mode, kind)
        if kind == "file":
            self._files[name] = entry
        return entry

    def _hard_link(self, name: str, info: tarfile.TarInfo) -> Entry | None:
        """Another name of a file that came before: its bytes lie there."""
        file = self._files.get(info.linkname.removeprefix("./"))
        if file is None:
            self._refuse(name, f"a link to {info.linkname[:200]!r}, which is not before it")
            return None
        entry = Entry(name, file.header, file.body, file.size, file.sha256, file.mtime, file.mode)
        self._files[name] = entry
        return entry


def _parsed(block: bytes, offset: int) -> tarfile.TarInfo:
    """One header block. Raises PackError."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        kind = next((name for magic, name in _PACKED.items() if block.startswith(magic)), None)
        if offset == 0 and kind is not None:
            raise PackError(
                f"it is packed by {kind}: where a member lies in it cannot be told; unpack it first"
            ) from error
        told = "it is no tar file" if offset == 0 else "the tar file is damaged"
        raise PackError(f"{told}: there is no header at {offset} ({error})") from error
    if block[257:265] == b"ustar  \0" and info.type in (b"0", b"\0", b"7"):
        # GNU tar has times where ustar has the beginning of a long name.
        info.name = _text(block[:100].partition(b"\0")[0])
    return info


def _with(header: tarfile.TarInfo, records: dict[str, str], offset: int) -> tarfile.TarInfo:
    """A member's header with what others say of it."""
    header.name = records.get("path", header.name)
    header.linkname = records.get("linkpath", header.linkname)
    header.size = _size_of(records.get("size"), header.size, offset)
    header.pax_headers = {"mtime": records.get("mtime") or time_text(int(header.mtime) * 10**9)}
    return header


def _size_of(told: str | None, size: int, offset: int) -> int:
    if told is None:
        return size
    if not (told.isascii() and told.isdecimal()) or len(told) > 19:
        raise PackError(f"the header before {offset} tells a size that is no number")
    return int(told)


def _records(data: bytes, offset: int) -> Iterator[tuple[str, str]]:
    """The records ``LENGTH KEYWORD=VALUE`` of a pax header. Raises PackError."""
    at = 0
    while at < len(data) and data[at]:
        digits, blank, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        keyword, equals, value = record.partition(b"=")
        if not blank or not equals or not record.endswith(b"\n") or at + length > len(data):
            raise PackError(f"the pax header before {offset} is damaged")
        yield _text(keyword), _text(value[:-1])
        at += length


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
