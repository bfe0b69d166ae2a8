"""Modes, owners and times: as on ext4, kept in the bucket, and the same after a remount."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import posix_attributes
from tests.fuse.outcomes import UTIME_NOW, UTIME_OMIT, utimensat
from tests.fuse.places import Place
from tests.fuse.trees import tree_of

STRANGER = 54321
"""A user id, and a group id, that nothing on the machine belongs to."""
SECOND_NS = 1_000_000_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change owners")


@pytest.fixture
def file(place: Place) -> Path:
    """A file of a few bytes."""
    path = place.path / "file"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize(
    "mode", [0o000, 0o400, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o7777]
)
def test_mode_of_a_file(place: Place, file: Path, mode: int) -> None:
    """All twelve bits, kept in the bucket with the type."""
    file.chmod(mode)
    assert file.stat().st_mode == stat.S_IFREG | mode
    place.mount.wait()
    assert posix_attributes(place.contents.metadata(f"{place.prefix}file"))[0] == (
        stat.S_IFREG | mode
    )


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777, 0o2775, 0o7777])
def test_mode_of_a_folder(place: Place, mode: int) -> None:
    """All twelve bits, in the marker."""
    (place.path / "folder").mkdir()
    (place.path / "folder").chmod(mode)
    assert (place.path / "folder").stat().st_mode == stat.S_IFDIR | mode
    place.mount.wait()
    kept = posix_attributes(place.contents.metadata(f"{place.prefix}folder/"))
    assert kept[0] == stat.S_IFDIR | mode


def test_modes_and_the_umask(place: Place) -> None:
    """The umask takes bits away from what open, mkdir and mknod ask for."""
    script = (
        "import os,sys\nos.chdir(sys.argv[1])\nos.umask(0o027)\n"
        "os.close(os.open('file', os.O_CREAT|os.O_WRONLY, 0o777))\n"
        "os.mkdir('folder', 0o777)\nos.mkfifo('fifo', 0o666)\n"
    )
    subprocess.run([sys.executable, "-c", script, place.path], check=True, timeout=60)
    modes = {name: (place.path / name).stat().st_mode for name in ("file", "folder", "fifo")}
    assert modes == {
        "file": stat.S_IFREG | 0o750,
        "folder": stat.S_IFDIR | 0o750,
        "fifo": stat.S_IFIFO | 0o640,
    }


def test_creating_without_any_permission(place: Place) -> None:
    """The handle that created a file of mode 0 may still write to it."""
    handle = os.open(place.path / "file", os.O_CREAT | os.O_RDWR, 0)
    os.write(handle, b"content")
    assert os.pread(handle, 10, 0) == b"content"
    os.close(handle)
    assert stat.S_IMODE((place.path / "file").stat().st_mode) == 0
    assert place.in_bucket("file") == b"content"


@as_root
def test_owner(place: Place, file: Path) -> None:
    """User and group, each alone and both, for a file and for a link itself."""
    os.chown(file, STRANGER, -1)
    os.chown(file, -1, STRANGER + 1)
    assert (file.stat().st_uid, file.stat().st_gid) == (STRANGER, STRANGER + 1)
    (place.path / "link").symlink_to("file")
    os.lchown(place.path / "link", 7, 8)
    assert (file.stat().st_uid, (place.path / "link").lstat().st_uid) == (STRANGER, 7)
    place.mount.wait()
    kept = {
        name: posix_attributes(place.contents.metadata(place.prefix + name))[1:3]
        for name in ("file", "link")
    }
    assert kept == {"file": (STRANGER, STRANGER + 1), "link": (7, 8)}


@as_root
def test_changing_the_owner_takes_set_ids_away(place: Place, file: Path) -> None:
    """From files; folders keep theirs."""
    file.chmod(0o6755)
    os.chown(file, STRANGER, STRANGER)
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    (place.path / "folder").mkdir()
    (place.path / "folder").chmod(0o2775)
    os.chown(place.path / "folder", STRANGER, STRANGER)
    assert stat.S_IMODE((place.path / "folder").stat().st_mode) == 0o2775


TIMES = [0, 1, SECOND_NS + 1, 1_700_000_000 * SECOND_NS + 123_456_789, 4_000_000_000 * SECOND_NS]


def test_the_mtime_that_was_seen_is_the_one_that_is_kept(place: Place) -> None:
    """Also of files that were written again within a tick of the kernel's clock, by other descriptors."""
    seen = {}
    for number in range(200):
        path = place.path / f"f{number}"
        for piece in (b"first", b"second"):
            with path.open("ab") as file:
                file.write(piece)
    place.mount.wait()
    for number in range(200):
        seen[number] = (place.path / f"f{number}").stat().st_mtime_ns
    place.mount.remount(fresh_state=True, fresh_cache=True)
    for number in range(200):
        assert (place.path / f"f{number}").stat().st_mtime_ns == seen[number]


@pytest.mark.parametrize("mtime_ns", TIMES)
def test_modification_time(place: Place, file: Path, mtime_ns: int) -> None:
    """To the nanosecond, kept in the bucket."""
    os.utime(file, ns=(mtime_ns, mtime_ns))
    assert file.stat().st_mtime_ns == mtime_ns
    place.mount.wait()
    assert posix_attributes(place.contents.metadata(f"{place.prefix}file"))[3] == mtime_ns


def test_modification_time_before_1970(file: Path) -> None:
    """Is kept as well, also when it has a fraction."""
    os.utime(file, ns=(-5 * SECOND_NS, -5 * SECOND_NS + 250_000_000))
    assert file.stat().st_mtime_ns == -5 * SECOND_NS + 250_000_000


def test_setting_one_time_only(file: Path) -> None:
    """UTIME_OMIT leaves a time alone, UTIME_NOW is the present."""
    os.utime(file, ns=(1000 * SECOND_NS, 2000 * SECOND_NS))
    utimensat(file, (0, UTIME_OMIT), (3000, 7))
    assert file.stat().st_mtime_ns == 3000 * SECOND_NS + 7
    before = time.time_ns()
    utimensat(file, (5, 5), (0, UTIME_OMIT))
    assert file.stat().st_mtime_ns == 3000 * SECOND_NS + 7
    utimensat(file, (0, UTIME_OMIT), (0, UTIME_NOW))
    assert abs(file.stat().st_mtime_ns - before) < 5 * SECOND_NS


def test_time_of_a_link_itself(place: Place) -> None:
    """``touch -h``: the link's own time."""
    (place.path / "link").symlink_to("nowhere")
    os.utime(place.path / "link", ns=(11, 12 * SECOND_NS + 1), follow_symlinks=False)
    assert (place.path / "link").lstat().st_mtime_ns == 12 * SECOND_NS + 1


def test_times_set_while_writing(place: Place) -> None:
    """``futimens`` before close, as cp -p and tar do it: the close does not change it again."""
    with (place.path / "file").open("wb", buffering=0) as handle:
        handle.write(b"x" * 100_000)
        os.utime(handle.fileno(), ns=(5, 1_000_000_007))
    assert (place.path / "file").stat().st_mtime_ns == 1_000_000_007
    place.mount.wait()
    kept = posix_attributes(place.contents.metadata(f"{place.prefix}file"))
    assert kept[3] == 1_000_000_007
    assert (place.path / "file").stat().st_mtime_ns == 1_000_000_007


def _set_old(path: Path) -> None:
    os.utime(path, ns=(SECOND_NS, SECOND_NS))


def test_writing_moves_the_modification_time(place: Place, file: Path) -> None:
    """So do truncation and a shared mapping's end; reading and chmod do not."""

    def moved(action: Callable[[], object]) -> bool:
        _set_old(file)
        action()
        return file.stat().st_mtime_ns != SECOND_NS

    def append() -> None:
        with file.open("ab") as handle:
            handle.write(b"x")

    def rename() -> None:
        file.rename(place.path / "x").rename(file)

    assert moved(append)
    assert moved(lambda: os.truncate(file, 2))
    assert moved(lambda: file.write_bytes(b"new"))
    assert not moved(file.read_bytes)
    assert not moved(lambda: file.chmod(0o600))
    assert not moved(rename)


def test_times_of_folders(place: Place) -> None:
    """Making, removing and renaming entries moves the folder's time; writing to a file in it does not."""
    folder = place.path / "folder"
    folder.mkdir()

    def moved(action: Callable[[], object]) -> bool:
        _set_old(folder)
        action()
        return folder.stat().st_mtime_ns != SECOND_NS

    assert moved(lambda: (folder / "file").touch())
    assert moved(lambda: (folder / "sub").mkdir())
    assert moved(lambda: (folder / "link").symlink_to("x"))
    assert moved(lambda: (folder / "file").rename(folder / "renamed"))
    assert moved(lambda: (folder / "sub").rmdir())
    assert moved(lambda: (folder / "link").unlink())
    assert not moved(lambda: (folder / "renamed").write_bytes(b"content"))
    assert not moved(lambda: (folder / "renamed").chmod(0o600))
    assert not moved(lambda: os.listdir(folder))


def test_status_change_time(place: Place, file: Path) -> None:
    """Every change of content, attributes or name moves ctime on; looking does not."""
    (place.path / "folder").mkdir()

    def moved(action: Callable[[], object]) -> bool:
        before = file.stat().st_ctime_ns
        time.sleep(0.02)
        action()
        return file.stat().st_ctime_ns > before

    def append() -> None:
        with file.open("ab") as handle:
            handle.write(b"x")

    assert moved(lambda: file.chmod(0o600))
    assert moved(lambda: os.utime(file, ns=(1, 1)))
    assert moved(append)
    assert moved(lambda: os.truncate(file, 1))
    if os.geteuid() == 0:
        assert moved(lambda: os.chown(file, 1, 1))
    assert not moved(file.read_bytes)
    assert not moved(lambda: os.access(file, os.R_OK))
    before = file.stat().st_ctime_ns
    time.sleep(0.02)
    file.rename(place.path / "folder/renamed")
    assert (place.path / "folder/renamed").stat().st_ctime_ns > before


def test_attributes_of_an_open_file(file: Path) -> None:
    """fchmod, futimens and ftruncate through a handle."""
    with file.open("r+b", buffering=0) as handle:
        os.fchmod(handle.fileno(), 0o600)
        os.ftruncate(handle.fileno(), 3)
        os.utime(handle.fileno(), ns=(1, 77 * SECOND_NS))
        seen = os.fstat(handle.fileno())
    assert (stat.S_IMODE(seen.st_mode), seen.st_size, seen.st_mtime_ns) == (
        0o600,
        3,
        77 * SECOND_NS,
    )
    after = file.stat()
    assert (stat.S_IMODE(after.st_mode), after.st_size, after.st_mtime_ns) == (
        0o600,
        3,
        77 * SECOND_NS,
    )


def test_blocks_count_bytes(place: Place, file: Path) -> None:
    """``du`` counts 512-byte blocks: not less than half of what a dense file holds."""
    (place.path / "file").write_bytes(b"x" * 1_000_000)
    os.sync()
    assert (place.path / "file").stat().st_blocks * 512 >= 500_000


AS_OTHER = """
import errno, os, sys
os.chdir(sys.argv[1])
os.setgroups([int(group) for group in sys.argv[3].split(",") if group])
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try:
    exec(sys.argv[4])
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("done")
"""


def _as_other(place: Place, statement: str, *, uid: int = STRANGER, groups: str = "") -> str:
    """Run one Python statement in the place as another user; ``done`` or the name of the errno."""
    ended = subprocess.run(
        [sys.executable, "-c", AS_OTHER, place.path, str(uid), groups, statement],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout.strip()


@as_root
def test_permissions_bind_other_users(place: Place, file: Path) -> None:
    """Owner, group and others each by their own bits, supplementary groups included."""
    os.chown(file, STRANGER, STRANGER)
    file.chmod(0o640)
    reading, writing = "open('file').close()", "open('file', 'a').close()"
    outcomes = {
        "owner": (_as_other(place, reading), _as_other(place, writing)),
        "group": tuple(
            _as_other(place, what, uid=STRANGER + 1, groups=str(STRANGER))
            for what in (reading, writing)
        ),
        "other": tuple(_as_other(place, what, uid=STRANGER + 1) for what in (reading, writing)),
    }
    assert outcomes == {
        "owner": ("done", "done"),
        "group": ("done", "EACCES"),
        "other": ("EACCES", "EACCES"),
    }


@as_root
def test_permissions_of_folders(place: Place) -> None:
    """Without x nothing below is reached, without w nothing is made or removed, without r no list."""
    (place.path / "folder").mkdir()
    (place.path / "folder/file").write_bytes(b"x")
    seen = {}
    for mode in (0o755, 0o751, 0o754, 0o750, 0o757):
        (place.path / "folder").chmod(mode)
        seen[mode] = (
            _as_other(place, "os.listdir('folder')"),
            _as_other(place, "os.stat('folder/file')"),
            _as_other(place, "os.mkdir('folder/new'); os.rmdir('folder/new')"),
        )
    assert seen == {
        0o755: ("done", "done", "EACCES"),
        0o751: ("EACCES", "done", "EACCES"),
        0o754: ("done", "EACCES", "EACCES"),
        0o750: ("EACCES", "EACCES", "EACCES"),
        0o757: ("done", "done", "done"),
    }


@as_root
def test_what_others_make_is_theirs(place: Place) -> None:
    """A new file, folder and link belong to the user and group that made them."""
    place.path.chmod(0o777)
    made = "open('file','w').close(); os.mkdir('folder'); os.symlink('x','link')"
    assert _as_other(place, made) == "done"
    owners = {
        name: ((place.path / name).lstat().st_uid, (place.path / name).lstat().st_gid)
        for name in ("file", "folder", "link")
    }
    assert owners == dict.fromkeys(("file", "folder", "link"), (STRANGER, STRANGER))


@as_root
def test_only_the_owner_changes_attributes(place: Place, file: Path) -> None:
    """Others get EPERM, also with the right to write; the present time may then be set."""
    file.chmod(0o666)
    assert _as_other(place, "os.chmod('file', 0o777)") == "EPERM"
    assert _as_other(place, "os.chown('file', 54321, 54321)") == "EPERM"
    assert _as_other(place, "os.utime('file', (1, 1))") == "EPERM"
    assert _as_other(place, "os.utime('file')") == "done"
    file.chmod(0o644)
    assert _as_other(place, "os.utime('file')") == "EACCES"
    assert _as_other(place, "os.truncate('file', 0)") == "EACCES"
    assert file.read_bytes() == b"content"


@as_root
def test_sticky_folder(place: Place) -> None:
    """In a folder like /tmp only the owner of an entry removes or renames it."""
    place.path.chmod(0o1777)
    (place.path / "roots").write_bytes(b"x")
    assert _as_other(place, "open('own','w').close()") == "done"
    assert _as_other(place, "os.unlink('roots')") == "EPERM"
    assert _as_other(place, "os.rename('roots', 'taken')") == "EPERM"
    assert _as_other(place, "os.rename('own', 'roots')") == "EPERM"
    assert _as_other(place, "os.unlink('own')", uid=STRANGER + 1) == "EPERM"
    assert _as_other(place, "os.rename('own', 'mine')") == "done"
    assert _as_other(place, "os.unlink('mine')") == "done"
    assert os.listdir(place.path) == ["roots"]


@as_root
def test_group_of_a_set_gid_folder(place: Place) -> None:
    """What is made in it belongs to its group; folders hand the bit on."""
    os.chown(place.path, 0, STRANGER)
    place.path.chmod(0o2777)
    (place.path / "file").touch()
    (place.path / "folder").mkdir()
    (place.path / "link").symlink_to("x")
    os.mkfifo(place.path / "fifo")
    for name in ("file", "folder", "link", "fifo"):
        assert (place.path / name).lstat().st_gid == STRANGER
    assert (place.path / "folder").stat().st_mode & stat.S_ISGID
    assert not (place.path / "file").stat().st_mode & stat.S_ISGID
    (place.path / "folder/deeper").mkdir()
    deeper = (place.path / "folder/deeper").stat()
    assert (deeper.st_gid, bool(deeper.st_mode & stat.S_ISGID)) == (STRANGER, True)


@as_root
def test_writing_takes_set_ids_away(place: Place, file: Path) -> None:
    """When somebody without the privilege writes to or cuts a set-id program."""
    os.chown(file, STRANGER, STRANGER)
    file.chmod(0o6755)
    assert _as_other(place, "f=open('file','a'); f.write('x'); f.close()") == "done"
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    file.chmod(0o6755)
    assert _as_other(place, "os.truncate('file', 1)") == "done"
    assert stat.S_IMODE(file.stat().st_mode) == 0o755


@as_root
def test_set_gid_needs_the_group(place: Place, file: Path) -> None:
    """An owner outside of the file's group cannot give it the set-gid bit."""
    os.chown(file, STRANGER, STRANGER + 1)
    assert _as_other(place, "os.chmod('file', 0o2755)") == "done"
    assert stat.S_IMODE(file.stat().st_mode) == 0o755


def test_attributes_after_a_fresh_remount(own_place: Place) -> None:
    """Another machine sees the same modes, owners, times, links and types."""
    root = own_place.path
    (root / "folder/sub").mkdir(parents=True)
    (root / "folder/file").write_bytes(b"content")
    (root / "folder/empty").touch()
    (root / "folder/link").symlink_to("../folder/file")
    os.mkfifo(root / "folder/fifo", 0o640)
    (root / "folder/file").chmod(0o4750)
    (root / "folder/sub").chmod(0o2770)
    if os.geteuid() == 0:
        for number, name in enumerate(("folder/file", "folder/sub", "folder/link", "folder")):
            os.lchown(root / name, STRANGER + number, STRANGER - number)
    for number, name in enumerate(("folder/file", "folder/link", "folder/sub", "folder")):
        stamp = 1_600_000_000 * SECOND_NS + number * 111_111_111
        os.utime(root / name, ns=(stamp, stamp), follow_symlinks=False)
    before = tree_of(root)
    own_place.mount.wait()
    assert tree_of(root) == before
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    assert tree_of(root) == before
