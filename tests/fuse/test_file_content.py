"""Bytes: what is written anywhere in a file is read back, and is what the bucket holds."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import wait_until
from tests.fuse.places import Place

MIB = 1 << 20
PART_BYTES = 8 * MIB
"""The default of --part-size."""


def pattern(size: int, seed: int = 1) -> bytes:
    """``size`` bytes that repeat nowhere, always the same for one seed."""
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        4095,
        4097,
        5 * MIB - 1,
        5 * MIB,
        5 * MIB + 1,
        PART_BYTES - 1,
        PART_BYTES,
        PART_BYTES + 1,
        2 * PART_BYTES,
        2 * PART_BYTES + 1,
    ],
)
def test_sizes_around_the_limits_of_parts(place: Place, size: int) -> None:
    """Empty, one byte, a page, S3's least part, our part: each arrives whole."""
    content = pattern(size)
    file = place.path / "file"
    file.write_bytes(content)
    assert file.stat().st_size == size
    assert file.read_bytes() == content
    assert place.in_bucket("file") == content
    assert place.keys_in_bucket() == {"file"}


def test_writes_anywhere(place: Place) -> None:
    """Random writes, truncations and reads on one handle, then the same bytes in the bucket."""
    rng = random.Random(7)
    model = bytearray()
    file = place.path / "file"
    with file.open("w+b", buffering=0) as handle:
        for _ in range(300):
            offset = rng.randrange(3 * MIB)
            if rng.random() < 0.1:
                os.ftruncate(handle.fileno(), offset)
                model = model[:offset] + bytes(max(0, offset - len(model)))
            elif rng.random() < 0.4:
                assert os.pread(handle.fileno(), 70_000, offset) == model[offset : offset + 70_000]
            else:
                data = rng.randbytes(rng.randrange(1, 100_000))
                assert os.pwrite(handle.fileno(), data, offset) == len(data)
                model.extend(bytes(max(0, offset + len(data) - len(model))))
                model[offset : offset + len(data)] = data
            assert os.fstat(handle.fileno()).st_size == len(model)
    assert file.read_bytes() == model
    assert place.in_bucket("file") == model


def test_change_inside_an_uploaded_file(place: Place) -> None:
    """A few bytes changed in the middle of an object; the rest stays as it was."""
    content = bytearray(pattern(2 * PART_BYTES + 12345))
    place.contents.put(place.prefix + "file", bytes(content))
    with _appearing(place.path / "file").open("r+b", buffering=0) as handle:
        for offset in (0, PART_BYTES - 3, len(content) - 2):
            os.pwrite(handle.fileno(), b"change", offset)
            content[offset : offset + 6] = b"change"
    assert (place.path / "file").read_bytes() == content
    assert place.in_bucket("file") == content


def test_append_to_an_uploaded_file(place: Place) -> None:
    """Appending by ``>>`` leaves what was there."""
    content = pattern(PART_BYTES + 5)
    place.contents.put(place.prefix + "file", content)
    with _appearing(place.path / "file").open("ab") as handle:
        handle.write(b"and more")
    assert place.in_bucket("file") == content + b"and more"


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 4, 2 * PART_BYTES])
def test_truncate_an_uploaded_file(place: Place, size: int) -> None:
    """Cut shorter or made longer without having been read; what is new is zero."""
    content = pattern(PART_BYTES + 5)
    place.contents.put(place.prefix + "file", content)
    os.truncate(_appearing(place.path / "file"), size)
    wanted = content[:size] + bytes(max(0, size - len(content)))
    assert (place.path / "file").stat().st_size == size
    assert (place.path / "file").read_bytes() == wanted
    assert place.in_bucket("file") == wanted


def test_truncated_bytes_do_not_come_back(place: Place) -> None:
    """Shorter and longer again: zeros, never the old bytes."""
    file = place.path / "file"
    file.write_bytes(b"secret" * 2000)
    os.truncate(file, 3)
    os.truncate(file, 9000)
    assert file.read_bytes() == b"sec" + bytes(8997)
    assert place.in_bucket("file") == b"sec" + bytes(8997)


def test_holes_are_zeros(place: Place) -> None:
    """Writing far behind the end leaves zeros between, in the mount and in the bucket."""
    with (place.path / "file").open("wb", buffering=0) as handle:
        os.pwrite(handle.fileno(), b"end", PART_BYTES + 100)
        os.pwrite(handle.fileno(), b"start", 0)
    wanted = b"start" + bytes(PART_BYTES + 95) + b"end"
    assert (place.path / "file").read_bytes() == wanted
    assert place.in_bucket("file") == wanted


def test_append_handles_take_turns(place: Place) -> None:
    """With O_APPEND each write goes to the present end, whoever wrote before."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    one = os.open(place.path / "log", flags)
    two = os.open(place.path / "log", flags)
    for number in range(20):
        os.write(one if number % 2 else two, b"line %d\n" % number)
    os.close(one)
    os.close(two)
    wanted = b"".join(b"line %d\n" % number for number in range(20))
    assert place.in_bucket("log") == wanted


def test_append_from_two_processes(place: Place) -> None:
    """Lines of two processes that append at once are all there, none of them torn."""
    script = "import os,sys\nf=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND|os.O_CREAT)\n"
    script += "for n in range(200): os.write(f, (sys.argv[2]*50+'\\n').encode())\n"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, place.path / "log", letter])
        for letter in "ab"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = place.in_bucket("log").split(b"\n")
    assert sorted(lines) == [b""] + [b"a" * 50] * 200 + [b"b" * 50] * 200


def test_open_with_truncation(place: Place) -> None:
    """O_TRUNC empties the file at once, for other handles too."""
    file = place.path / "file"
    file.write_bytes(b"old content")
    place.mount.wait()
    with file.open("rb") as reader:
        handle = os.open(file, os.O_WRONLY | os.O_TRUNC)
        assert file.stat().st_size == 0
        assert reader.read() == b""
        os.write(handle, b"new")
        os.close(handle)
    assert place.in_bucket("file") == b"new"
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    assert place.in_bucket("file") == b""


def test_one_handle_sees_what_another_writes(place: Place) -> None:
    """At once, before anything is closed."""
    file = place.path / "file"
    with file.open("wb", buffering=0) as writer, file.open("rb", buffering=0) as reader:
        writer.write(b"first")
        assert reader.read() == b"first"
        writer.write(b"second")
        assert reader.read() == b"second"
        assert file.stat().st_size == 11


def test_writing_goes_on_after_a_flush(place: Place) -> None:
    """A duplicate's close flushes, and so does fsync; neither ends the writing."""
    handle = os.open(place.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(handle, b"one ")
    os.close(os.dup(handle))
    os.write(handle, b"two ")
    os.fsync(handle)
    os.write(handle, b"three ")
    os.fdatasync(handle)
    place.mount.wait()
    os.write(handle, b"four")
    os.close(handle)
    assert place.in_bucket("file") == b"one two three four"


def test_many_versions_in_a_row(place: Place) -> None:
    """The last of many quick overwrites is what the bucket holds in the end."""
    file = place.path / "file"
    for number in range(60):
        file.write_bytes(b"version %d" % number * (number + 1))
        assert file.read_bytes() == b"version %d" % number * (number + 1)
    assert place.in_bucket("file") == b"version 59" * 60


def test_space_can_be_reserved(place: Place) -> None:
    """``posix_fallocate`` makes the file long enough and keeps what was there."""
    with (place.path / "file").open("w+b", buffering=0) as handle:
        handle.write(b"start")
        os.posix_fallocate(handle.fileno(), 0, 100_000)
        assert os.fstat(handle.fileno()).st_size == 100_000
    assert place.in_bucket("file") == b"start" + bytes(99_995)


def test_copies_inside_the_kernel(place: Place) -> None:
    """``copy_file_range`` and ``sendfile``, as ``cp`` and servers use them."""
    content = pattern(300_000)
    (place.path / "source").write_bytes(content)
    with (place.path / "source").open("rb") as source:
        for name in ("ranged", "sent"):
            with (place.path / name).open("wb") as target:
                done = 0
                while done < len(content):
                    if name == "ranged":
                        done += os.copy_file_range(source.fileno(), target.fileno(), 1 << 20, done)
                    else:
                        done += os.sendfile(target.fileno(), source.fileno(), done, 1 << 20)
    assert place.in_bucket("ranged") == content
    assert place.in_bucket("sent") == content


def test_vectors(place: Place) -> None:
    """``pwritev`` and ``preadv``."""
    with (place.path / "file").open("w+b", buffering=0) as handle:
        assert os.pwritev(handle.fileno(), [b"abc", b"", b"defg"], 2) == 7
        parts = [bytearray(4), bytearray(10)]
        assert os.preadv(handle.fileno(), parts, 1) == 8
    assert bytes(parts[0] + parts[1][:4]) == b"\0abcdefg"
    assert place.in_bucket("file") == b"\0\0abcdefg"


def test_direct_io(place: Place) -> None:
    """O_DIRECT with aligned buffers, as ``dd oflag=direct`` and databases use it."""
    content = pattern(16 * 4096)
    with mmap.mmap(-1, len(content)) as aligned:
        aligned.write(content)
        handle = os.open(place.path / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        assert os.pwrite(handle, aligned, 0) == len(content)
        back = mmap.mmap(-1, len(content))
        assert os.preadv(handle, [back], 4096) == len(content) - 4096
        os.close(handle)
    assert back[: len(content) - 4096] == content[4096:]
    back.close()
    assert place.in_bucket("file") == content


MAPPED = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    size = os.fstat(file.fileno()).st_size
    with mmap.mmap(file.fileno(), size) as shared, \
         mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as own:
        assert shared[:5] == own[:5] == b"start"
        shared[10:15] = b"there"
        own[20:23] = b"own"
        shared[size - 3:] = b"end"
        shared.flush()
        os.pwrite(file.fileno(), b"write", 5000)
        assert shared[5000:5005] == b"write"
        assert os.pread(file.fileno(), 5, 10) == b"there"
"""


def test_mapped_memory(place: Place) -> None:
    """A shared mapping reads, writes and agrees with read and write; a private one changes nothing."""
    content = bytearray(b"start" + pattern(3 * MIB))
    file = place.path / "file"
    file.write_bytes(content)
    place.mount.wait()
    subprocess.run([sys.executable, "-c", MAPPED, file], check=True, timeout=60)
    content[10:15], content[-3:], content[5000:5005] = b"there", b"end", b"write"
    assert file.read_bytes() == content
    assert place.in_bucket("file") == content


MAPPED_UNFLUSHED = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 0)
    file.close()
    shared[:4] = b"late"
    shared.close()
"""


def test_mapped_memory_written_after_close(place: Place) -> None:
    """A mapping outlives its descriptor; what is written through it then arrives as well."""
    file = place.path / "file"
    file.write_bytes(b"....content")
    place.mount.wait()
    subprocess.run([sys.executable, "-c", MAPPED_UNFLUSHED, file], check=True, timeout=60)
    assert file.read_bytes() == b"latecontent"
    assert place.in_bucket("file") == b"latecontent"


def test_unlinked_file_is_readable_until_closed(place: Place) -> None:
    """Its name is gone, its bytes stay for the handle; the bucket ends without it."""
    file = place.path / "file"
    with file.open("w+b", buffering=0) as handle:
        handle.write(b"before")
        file.unlink()
        assert not file.exists()
        handle.write(b" after")
        assert os.pread(handle.fileno(), 20, 0) == b"before after"
        status = os.fstat(handle.fileno())
        assert (status.st_size, status.st_nlink) == (12, 0)
        os.ftruncate(handle.fileno(), 3)
        os.fchmod(handle.fileno(), 0o600)
        os.fsync(handle.fileno())
        assert os.pread(handle.fileno(), 20, 0) == b"bef"
    assert place.keys_in_bucket() == set()


def test_unlinked_file_whose_bytes_are_only_in_the_bucket(place: Place) -> None:
    """Opened, removed, and only then read, to the last byte."""
    content = pattern(2 * PART_BYTES + 77)
    place.contents.put(place.prefix + "file", content)
    with _appearing(place.path / "file").open("rb", buffering=0) as handle:
        assert handle.read(10) == content[:10]
        (place.path / "file").unlink()
        digest = hashlib.md5(content[:10])
        while data := handle.read(MIB):
            digest.update(data)
        assert digest.hexdigest() == hashlib.md5(content).hexdigest()
    assert place.keys_in_bucket() == set()


def test_new_file_under_an_unlinked_name(place: Place) -> None:
    """The old handle keeps the old file, the name shows the new one."""
    file = place.path / "file"
    file.write_bytes(b"old")
    with file.open("r+b", buffering=0) as old:
        file.unlink()
        file.write_bytes(b"the new one")
        old.write(b"OLD")
        assert os.pread(old.fileno(), 20, 0) == b"OLD"
        assert file.read_bytes() == b"the new one"
        assert os.fstat(old.fileno()).st_ino != file.stat().st_ino
    assert place.in_bucket("file") == b"the new one"


def test_file_without_a_name(place: Place) -> None:
    """``tempfile`` leaves nothing behind, whether O_TMPFILE is there or not."""
    script = "import sys,tempfile\nwith tempfile.TemporaryFile(dir=sys.argv[1]) as f:\n"
    script += "  f.write(b'x'*100000); f.seek(0); assert f.read()==b'x'*100000\n"
    subprocess.run([sys.executable, "-c", script, place.path], check=True, timeout=60)
    assert os.listdir(place.path) == []
    assert place.keys_in_bucket() == set()


def _appearing(path: Path) -> Path:
    """``path``, which others have just written into the bucket, once the mount shows it."""
    wait_until(path.exists, f"{path.name} appears")
    return path
