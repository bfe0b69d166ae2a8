"""Symbolic links, fifos, sockets and device nodes: empty or small objects with their type in the mode."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import posix_attributes
from tests.fuse.outcomes import outcome
from tests.fuse.places import Place

TARGETS = [
    "file",
    "nowhere",
    "../file",
    "/etc/hostname",
    "x" * 4095,
    "\u00fcber/\U0001f680",
    " ",
    "a\nb",
    ".",
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: ascii(target)[:20])
def test_symbolic_link(place: Place, target: str) -> None:
    """The target comes back byte by byte, the size is its length, the bucket holds it as the body."""
    link = place.path / "link"
    link.symlink_to(target)
    assert os.readlink(link) == target
    status = link.lstat()
    assert stat.S_ISLNK(status.st_mode)
    assert status.st_size == len(target.encode())
    assert place.in_bucket("link") == target.encode()
    kept = posix_attributes(place.contents.metadata(f"{place.prefix}link"))
    assert stat.S_ISLNK(kept[0])


def test_links_are_followed(place: Place) -> None:
    """To files, folders and through each other."""
    (place.path / "folder").mkdir()
    (place.path / "folder/file").write_bytes(b"content")
    (place.path / "to_folder").symlink_to("folder")
    (place.path / "to_file").symlink_to("to_folder/file")
    assert (place.path / "to_file").read_bytes() == b"content"
    (place.path / "to_file").write_bytes(b"written through")
    (place.path / "to_folder/new").write_bytes(b"new")
    assert place.in_bucket("folder/file") == b"written through"
    assert place.keys_in_bucket() == {
        "folder/",
        "folder/file",
        "folder/new",
        "to_folder",
        "to_file",
    }


def test_created_through_a_dangling_link(place: Place) -> None:
    """``open`` with O_CREAT makes what the link points to."""
    (place.path / "link").symlink_to("target")
    (place.path / "link").write_bytes(b"content")
    assert place.in_bucket("target") == b"content"
    assert place.in_bucket("link") == b"target"


def test_link_replaced(place: Place) -> None:
    """``ln -sfn`` by rename: the new target at once, and in the bucket."""
    (place.path / "link").symlink_to("old")
    place.mount.wait()
    (place.path / "new").symlink_to("newer target")
    (place.path / "new").rename(place.path / "link")
    assert os.readlink(place.path / "link") == "newer target"
    assert place.in_bucket("link") == b"newer target"
    (place.path / "link").unlink()
    (place.path / "link").write_bytes(b"a file now")
    assert not (place.path / "link").is_symlink()
    assert place.in_bucket("link") == b"a file now"
    kept = posix_attributes(place.contents.metadata(f"{place.prefix}link"))
    assert stat.S_ISREG(kept[0])


def test_regular_file_by_mknod(place: Place) -> None:
    """It is a file like any other."""
    os.mknod(place.path / "file", stat.S_IFREG | 0o640)
    assert (place.path / "file").stat().st_mode == stat.S_IFREG | 0o640
    (place.path / "file").write_bytes(b"content")
    assert place.in_bucket("file") == b"content"


def test_fifo(place: Place) -> None:
    """Bytes pass between processes and none of them gets into the bucket."""
    fifo = place.path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    script = "import sys\nopen(sys.argv[1],'wb').write(b'through the fifo')\n"
    with subprocess.Popen([sys.executable, "-c", script, fifo]) as writer:
        assert fifo.read_bytes() == b"through the fifo"
    assert writer.returncode == 0
    assert place.in_bucket("fifo") == b""
    kept = posix_attributes(place.contents.metadata(f"{place.prefix}fifo"))
    assert kept[0] == stat.S_IFIFO | 0o600


def test_socket(place: Place) -> None:
    """A server listens on it and a client finds it."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        here = os.open(place.path, os.O_RDONLY)
        try:
            address = f"/proc/self/fd/{here}/socket"
            server.bind(address)
            server.listen()
            client.connect(address)
            client.sendall(b"hello")
        finally:
            os.close(here)
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(10) == b"hello"
    assert stat.S_ISSOCK((place.path / "socket").stat().st_mode)
    assert place.in_bucket("socket") == b""
    kept = posix_attributes(place.contents.metadata(f"{place.prefix}socket"))
    assert stat.S_ISSOCK(kept[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make device nodes")
def test_device_nodes(own_place: Place) -> None:
    """Their numbers are kept, also for a new mount; nobody can open them (nodev)."""
    root = own_place.path
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    own_place.mount.wait()
    for name in ("null", "disk"):
        assert own_place.contents.read(name) == b""
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    null, disk = (root / "null").stat(), (root / "disk").stat()
    assert stat.S_ISCHR(null.st_mode)
    assert stat.S_ISBLK(disk.st_mode)
    assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
    assert (os.major(disk.st_rdev), os.minor(disk.st_rdev)) == (259, 70000)


@pytest.mark.needs_s3
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make device nodes")
def test_device_nodes_do_not_open(place: Place) -> None:
    """A bucket is not to be trusted with devices."""
    os.mknod(place.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert outcome((place.path / "null").read_bytes) == "EACCES"


@pytest.mark.needs_s3
@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_set_id_bits_give_no_rights(place: Place) -> None:
    """``nosuid``: a set-user-id program runs as the one who starts it."""
    program = place.path / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    shown = subprocess.run(
        ["./id", "-u"],
        cwd=place.path,
        user=54321,
        group=54321,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout.strip() == b"54321"


@pytest.mark.needs_s3
def test_hard_links_are_refused(place: Place) -> None:
    """EPERM, as POSIX names it, and the file is as before."""
    (place.path / "file").write_bytes(b"content")
    assert outcome(lambda: os.link(place.path / "file", place.path / "second")) == "EPERM"
    assert (place.path / "file").stat().st_nlink == 1
    assert place.keys_in_bucket() == {"file"}
