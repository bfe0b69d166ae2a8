"""Random operations on the mount and on a plain folder: same results, same errnos, same content.

S3MOUNT_PROPERTY_EXAMPLES sets the number of programs (each of up to 60 steps); with
S3MOUNT_PROPERTY_SEED they are other ones, the same for the same seed. A failure prints the program.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.mounting import Mount
from tests.servers import S3Server

EXAMPLES = int(os.environ.get("S3MOUNT_PROPERTY_EXAMPLES", "12"))
SEED = os.environ.get("S3MOUNT_PROPERTY_SEED")
STEPS = 60
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

NAMES = st.sampled_from(("a", "b", "c", "d e", "ü%"))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.integers(0, 255), st.integers(1, 70_000)).map(lambda p: bytes([p[0]]) * p[1]),
)
OFFSETS = st.one_of(st.integers(0, 50), st.integers(0, 200_000))
MODES = st.sampled_from((0o644, 0o600, 0o755, 0o444, 0o4711))
FLAGS = st.sampled_from(
    (
        os.O_RDONLY,
        os.O_RDWR,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    )
)


class Pair(NamedTuple):
    """The same open file on both sides."""

    mounted: int
    model: int


class Subject(NamedTuple):
    """What all programs of a run work on."""

    mount: Mount
    contents: S3Contents
    models: Path


def outcome(action: Callable[[], Any]) -> tuple[str, Any]:
    """What an operation gave, or its errno."""
    try:
        return "gave", action()
    except OSError as error:
        return "failed", errno_name(error)


def errno_name(error: OSError) -> str:
    """The errno by name: a mismatch is easier to read."""
    return os.strerror(error.errno or 0)


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below ``root``: kind, permissions, and bytes or target."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            what: object = None
            if stat.S_ISLNK(status.st_mode):
                what = path.readlink()
            elif stat.S_ISREG(status.st_mode):
                what = path.read_bytes()
                assert status.st_size == len(path.read_bytes())
            mode = 0 if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
            found[str(path.relative_to(root))] = (kind, mode, what)
    return found


class MountAgainstFolder(RuleBasedStateMachine):
    """One program of operations, done on both sides."""

    subject: ClassVar[Subject]
    numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        name = f"program{next(self.numbers)}"
        self.prefix = name + "/"
        self.mounted = self.subject.mount.path / name
        self.model = self.subject.models / name
        self.mounted.mkdir()
        self.model.mkdir()
        self.handles: list[Pair] = []

    def both(self, action: Callable[[Path], Any]) -> Any:
        """Do it on both sides, compare, and give what the folder gave."""
        mounted = outcome(lambda: action(self.mounted))
        model = outcome(lambda: action(self.model))
        assert mounted == model
        return model

    # ------------------------------------------------------------------ by path

    @rule(path=PATHS, data=DATA)
    def write(self, path: str, data: bytes) -> None:
        self.both(lambda root: (root / path).write_bytes(data))

    @rule(path=PATHS, data=DATA)
    def append(self, path: str, data: bytes) -> None:
        def do(root: Path) -> int:
            with (root / path).open("ab") as file:
                return file.write(data)

        self.both(do)

    @rule(path=PATHS, offset=OFFSETS, data=DATA)
    def write_inside(self, path: str, offset: int, data: bytes) -> None:
        def do(root: Path) -> int:
            with (root / path).open("r+b") as file:
                file.seek(offset)
                return file.write(data)

        self.both(do)

    @rule(path=PATHS)
    def read(self, path: str) -> None:
        self.both(lambda root: (root / path).read_bytes())

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda root: os.truncate(root / path, size))

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        self.both(lambda root: (root / path).mkdir())

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.both(lambda root: (root / path).rmdir())

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda root: (root / path).unlink())

    @rule(path=PATHS)
    def remove_tree(self, path: str) -> None:
        def do(root: Path) -> bool:
            if not (root / path).is_dir() or (root / path).is_symlink():
                return False
            shutil.rmtree(root / path)
            return True

        self.both(do)

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        self.both(lambda root: os.rename(root / old, root / new))

    @rule(leads_to=PATHS, path=PATHS)
    def symlink(self, leads_to: str, path: str) -> None:
        self.both(lambda root: (root / path).symlink_to(leads_to))

    @rule(path=PATHS)
    def readlink(self, path: str) -> None:
        self.both(lambda root: (root / path).readlink())

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: str, mode: int) -> None:
        def do(root: Path) -> None:
            # A folder keeps its x bits, or the walk of another user than root would end there.
            mask = 0o700 if (root / path).is_dir() else 0
            (root / path).chmod(mode | mask)

        self.both(do)

    @rule(path=PATHS, stamp=st.integers(0, 1_999_999_999_999_999_999))
    def utime(self, path: str, stamp: int) -> None:
        def do(root: Path) -> int:
            os.utime(root / path, ns=(stamp, stamp))
            return (root / path).stat().st_mtime_ns

        self.both(do)

    @rule(path=PATHS)
    def list_folder(self, path: str) -> None:
        self.both(lambda root: sorted(os.listdir(root / path)))

    @rule(path=PATHS)
    def look(self, path: str) -> None:
        def do(root: Path) -> tuple[int, int]:
            status = (root / path).lstat()
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            return stat.S_IFMT(status.st_mode), size

        self.both(do)

    # ---------------------------------------------------------------- by handle

    @precondition(lambda self: len(self.handles) < 4)
    @rule(path=PATHS, flags=FLAGS)
    def open(self, path: str, flags: int) -> None:
        mounted = outcome(lambda: os.open(self.mounted / path, flags, 0o640))
        model = outcome(lambda: os.open(self.model / path, flags, 0o640))
        if mounted[0] == model[0] == "gave":
            self.handles.append(Pair(mounted[1], model[1]))
        else:
            assert mounted == model

    def by_handle(self, choice: int, action: Callable[[int], Any]) -> None:
        pair = self.handles[choice % len(self.handles)]
        mounted = outcome(lambda: action(pair.mounted))
        model = outcome(lambda: action(pair.model))
        assert mounted == model

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), offset=OFFSETS, data=DATA)
    def pwrite(self, choice: int, offset: int, data: bytes) -> None:
        self.by_handle(choice, lambda fd: os.pwrite(fd, data, offset))

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), offset=OFFSETS, length=st.integers(0, 100_000))
    def pread(self, choice: int, offset: int, length: int) -> None:
        self.by_handle(choice, lambda fd: os.pread(fd, length, offset))

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), size=OFFSETS)
    def ftruncate(self, choice: int, size: int) -> None:
        self.by_handle(choice, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3))
    def fsync(self, choice: int) -> None:
        self.by_handle(choice, os.fsync)

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3))
    def size_of(self, choice: int) -> None:
        def do(fd: int) -> object:
            status = os.fstat(fd)
            return status.st_size if stat.S_ISREG(status.st_mode) else None

        self.by_handle(choice, do)

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3))
    def close(self, choice: int) -> None:
        pair = self.handles.pop(choice % len(self.handles))
        mounted = outcome(lambda: os.close(pair.mounted))
        assert mounted == outcome(lambda: os.close(pair.model))

    def close_all(self) -> None:
        while self.handles:
            self.close(0)

    # ------------------------------------------------- what happens around them

    @rule()
    def evict(self) -> None:
        """The kernel's copies go; what is dirty is written back first."""
        os.sync()
        with contextlib.suppress(PermissionError):
            DROP_CACHES.write_text("3")

    @rule()
    def upload(self) -> None:
        self.subject.mount.wait()

    @rule(chance=st.integers(0, 7), kind=st.sampled_from(("cache", "state", "kill")))
    def remount(self, chance: int, kind: str) -> None:
        """Rare, as it takes a second: cleanly (with an empty cache, or as on another machine), or by kill -9."""
        assume(chance == 0)
        self.close_all()
        mount = self.subject.mount
        if kind == "kill":
            mount.kill9()
            mount.mount()
        else:
            mount.remount(fresh_cache=True, fresh_state=kind == "state")
        assert tree_of(self.mounted) == tree_of(self.model)

    def is_plain_file_place(self, path: str) -> bool:
        """May somebody else write an object there: a file or nothing, in folders that are no links?"""
        at = self.model
        for name in path.split("/")[:-1]:
            at = at / name
            if at.is_symlink() or not at.is_dir():
                return False
        at = at / path.rsplit("/", 1)[-1]
        return not at.is_symlink() and not at.is_dir()

    @rule(chance=st.integers(0, 3), path=PATHS, data=DATA)
    def somebody_else_writes(self, chance: int, path: str, data: bytes) -> None:
        assume(chance == 0 and self.is_plain_file_place(path))
        self.close_all()
        self.subject.mount.wait()
        self.subject.contents.put(self.prefix + path, data)
        (self.model / path).unlink(missing_ok=True)
        (self.model / path).write_bytes(data)
        (self.model / path).chmod(0o644)

        def is_seen() -> bool:
            with contextlib.suppress(FileNotFoundError):
                mode = stat.S_IMODE((self.mounted / path).stat().st_mode)
                return (self.mounted / path).read_bytes() == data and mode == 0o644
            return False

        # The same bytes with other metadata are told apart by LastModified, at S3's whole seconds.
        wait_until(is_seen, f"{path} as somebody else wrote it")

    @rule(chance=st.integers(0, 3), path=PATHS)
    def somebody_else_deletes(self, chance: int, path: str) -> None:
        assume(chance == 0 and self.is_plain_file_place(path) and (self.model / path).is_file())
        self.close_all()
        self.subject.mount.wait()
        self.subject.contents.delete(self.prefix + path)
        (self.model / path).unlink()
        wait_until(lambda: not (self.mounted / path).exists(), f"{path} is gone")

    @invariant()
    def is_still_mounted(self) -> None:
        assert self.subject.mount.mounted

    def teardown(self) -> None:
        try:
            self.close_all()
            assert tree_of(self.mounted) == tree_of(self.model)
            self.subject.mount.wait()
            stored = self.stored()
            assert stored == {
                path: what[2]
                for path, what in tree_of(self.model).items()
                if stat.S_ISREG(int(str(what[0])))
            }
        finally:
            for pair in self.handles:
                for fd in pair:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            super().teardown()

    def stored(self) -> dict[str, bytes]:
        """The bytes of all regular files of this program, as the bucket has them."""
        found = {}
        for key in self.subject.contents.listing(self.prefix):
            if key.endswith("/"):
                continue
            metadata = self.subject.contents.metadata(key)
            mode = int(metadata.get("mode", stat.S_IFREG))
            if stat.S_ISREG(mode):
                found[key.removeprefix(self.prefix)] = self.subject.contents.read(key)
        return found


@pytest.mark.timeout(900)
def test_mount_behaves_as_a_folder(
    bucket: str,
    mount_factory: Callable[..., Mount],
    s3_server: S3Server,
    tmp_path: Path,
) -> None:
    """See the module's docstring."""
    mount = mount_factory(bucket)
    MountAgainstFolder.subject = Subject(
        mount, S3Contents(s3_server.boto3_client(), bucket), tmp_path
    )
    chosen = random.Random(SEED).randrange(1 << 30) if SEED is not None else 0
    machine = seed(chosen)(MountAgainstFolder)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
