"""What ``s3mount demo`` shows: real files through a mount into S3, and the proof that they arrived."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from botocore.exceptions import BotoCoreError, ClientError

from s3mount.demo.mounted import DemoMount, make_bucket, run, s3_client
from s3mount.demo.server import DemoServer
from s3mount.errors import S3MountError

BUCKET = "s3mount-demo"
TREE = "library"
PACKAGES = (
    *("asyncio", "collections", "concurrent", "email", "encodings", "html", "http", "importlib"),
    *("json", "logging", "multiprocessing", "sqlite3", "tomllib", "unittest", "urllib", "xml"),
)
"""Parts of Python's own library: some 350 files of every size up to 200 KB, on every machine."""
ALIVE_POLL_S = 0.5


class Tree(NamedTuple):
    """A folder's regular files: how many, and their bytes in all."""

    files: int
    size_bytes: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.files} files, {self.size_bytes / (1 << 20):.1f} MiB"


def run_walkthrough() -> int:
    """Show everything once on a mount of its own, in a dozen lines; 0 when all of it was right.

    Nothing stays running or mounted, also after Ctrl-C or SIGTERM. Raises S3MountError.
    """
    with (
        _signals_end_it(),
        tempfile.TemporaryDirectory(prefix="s3mount-walkthrough-") as name,
        _server() as server,
    ):
        folder = Path(name)
        make_bucket(server, BUCKET)
        _say("bucket", f"{BUCKET} made")
        start_s = time.monotonic()
        with DemoMount(server, BUCKET, folder / "mnt", folder) as mount:
            _say("mount", f"s3mount {' '.join(mount.arguments)}  {_since(start_s)}")
            reference = folder / TREE
            copied = _copy_in(reference, mount.mountpoint)
            _change_both(reference, mount.mountpoint / TREE)
            start_s = time.monotonic()
            mount.command("wait")
            _say("wait", f"s3mount wait: everything is in S3  {_since(start_s)}")
            proven = prove(server, BUCKET, reference, f"{TREE}/")
            _say("proof", f"boto3 lists {proven} objects; the SHA-256 of each is that of its file")
            mount.command("unmount")
            _say("unmount", "s3mount unmount; nothing was left to send")
    _say("ended", f"the server and its bucket are gone, {copied.files} files with them")
    _show_next(
        f"{_own_name()} demo /mnt/x            the same bucket for you to play with, until Ctrl-C",
        f"{_own_name()} BUCKET /mnt/x          your own bucket, with the credentials that aws uses",
        f"{_own_name()} mount --help           all options; docs/OPERATIONS.md explains them",
    )
    return 0


def serve(mountpoint: str) -> int:
    """Start the server, mount a bucket at ``mountpoint`` and leave it there until Ctrl-C or SIGTERM.

    Also ends, with 0, when somebody else unmounts it. Raises S3MountError, too when the server dies.
    """
    with (
        tempfile.TemporaryDirectory(prefix="s3mount-demo-") as name,
        _server() as server,
    ):
        make_bucket(server, BUCKET)
        with (
            contextlib.suppress(KeyboardInterrupt),
            _signals_end_it(),
            DemoMount(server, BUCKET, Path(mountpoint), Path(name)) as mount,
        ):
            _say("mounted", f"the bucket {BUCKET} is at {mount.mountpoint}, until Ctrl-C here")
            keys = (
                f"AWS_ACCESS_KEY_ID={server.access_key} AWS_SECRET_ACCESS_KEY={server.secret_key}"
            )
            _show_next(
                f"cp -a /etc/services {mount.mountpoint}/",
                f"{_own_name()} status {mount.mountpoint}",
                f"{_own_name()} wait {mount.mountpoint}",
                f"{keys} aws s3 ls --recursive --endpoint-url {server.endpoint_url} s3://{BUCKET}",
            )
            while mount.is_mounted():
                if not server.is_running():
                    raise S3MountError("the embedded S3 server has ended by itself")
                time.sleep(ALIVE_POLL_S)
    _say("ended", "the server and its bucket are gone")
    return 0


@contextlib.contextmanager
def _server() -> Iterator[DemoServer]:
    start_s = time.monotonic()
    with DemoServer() as server:
        _say("server", f"an S3 server (LocalStack) on {server.endpoint_url}  {_since(start_s)}")
        yield server


def _copy_in(reference: Path, mountpoint: Path) -> Tree:
    """Make ``reference`` from Python's library and copy it into the mount with ``cp -a``."""
    library = Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        if (library / package).is_dir():
            shutil.copytree(
                library / package,
                reference / package,
                ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.so"),
            )
    tree = _measure(reference)
    start_s = time.monotonic()
    run(["cp", "-a", str(reference), str(mountpoint)])
    _say("copy", f"cp -a of Python's own library: {tree}  {_since(start_s)}")
    start_s = time.monotonic()
    run(["diff", "-r", str(reference), str(mountpoint / TREE)])
    _say("compare", f"diff -r finds no difference  {_since(start_s)}")
    return tree


def _change_both(reference: Path, mounted: Path) -> None:
    """Change both trees in the same way; they must be the same afterwards."""
    for root in (reference, mounted):
        with (root / "json" / "decoder.py").open("a") as appended:
            appended.write("# a line more\n")
        with (root / "email" / "message.py").open("r+b") as patched:
            patched.seek(100)
            patched.write(b"overwritten in the middle")
        (root / "html").rename(root / "markup")
        (root / "xml" / "__init__.py").unlink()
        (root / "notes.txt").write_text("written through the mount\n")
    if (mounted / "notes.txt").read_text() != "written through the mount\n":
        raise S3MountError("a file reads back other than it was written")
    run(["diff", "-r", str(reference), str(mounted)])
    _say("edit", "append, overwrite, rename a folder, remove, create: diff -r still finds none")


def prove(server: DemoServer, bucket: str, reference: Path, prefix: str) -> int:
    """Compare what boto3 finds below ``prefix`` with the files in ``reference``; how many they are.

    Raises S3MountError where they differ, by a name or a byte.
    """
    expected = {
        prefix + str(path.relative_to(reference)): path
        for path in reference.rglob("*")
        if path.is_file()
    }
    client = s3_client(server)
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        listed = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        found = {
            # Keys that end in a slash keep a folder's own mode and times.
            key: _digest(client.get_object(Bucket=bucket, Key=key)["Body"].read())
            for key in listed
            if not key.endswith("/")
        }
    except (BotoCoreError, ClientError) as error:
        raise S3MountError(f"the bucket cannot be read through boto3: {error}") from error
    digests = {key: _digest(path.read_bytes()) for key, path in expected.items()}
    if found != digests:
        wrong = sorted(key for key in found.keys() | digests if found.get(key) != digests.get(key))
        raise S3MountError(
            f"the bucket and the files differ in {len(wrong)} keys, {wrong[0]} the first"
        )
    return len(found)


def _measure(folder: Path) -> Tree:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Tree(len(sizes), sum(sizes))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that everything is taken down."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # What is ignored stays ignored: nohup means it.
    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _own_name() -> str:
    """How the person would call ``s3mount`` from here."""
    beside = Path(sys.executable).with_name("s3mount")
    if shutil.which("s3mount") is not None:
        return "s3mount"
    if not beside.exists():
        return "python -m s3mount"
    with contextlib.suppress(ValueError):
        return str(beside.relative_to(os.getcwd()))
    return str(beside)


def _show_next(*commands: str) -> None:
    print("\nTry next:", *(f"  {command}" for command in commands), sep="\n", flush=True)


def _say(step: str, what: str) -> None:
    print(f"{step:<10}{what}", flush=True)


def _since(start_s: float) -> str:
    return f"({time.monotonic() - start_s:.2f} s)"
