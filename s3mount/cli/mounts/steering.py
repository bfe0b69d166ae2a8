"""Steering a running mount: ``pause``, ``resume``, ``loglevel``, ``evict``, ``prefetch``, ``pin``, ``unpin``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import click
import msgspec

from s3mount.cli import output
from s3mount.cli.completing import MOUNTED
from s3mount.cli.manifests.status_line import StatusLine
from s3mount.cli.mounts.mounts import Mount, find_mount
from s3mount.daemon import protocol
from s3mount.daemon.client import ANSWER_TIMEOUT_S, Refused
from s3mount.errors import MountError
from s3mount.logs import LEVELS
from s3mount.refs import Evicted, TreeWork
from s3mount.status import size_text

F = TypeVar("F", bound=Callable[..., int])
EVICTION_TIMEOUT_S = 3600.0
"""A tree of millions is listed and removed, about which nothing is told meanwhile."""

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


def paths_argument(command: F) -> F:
    """The argument of a command that takes paths in mounts."""
    return click.argument("paths", type=MOUNTED, nargs=-1, required=True, metavar="PATH...")(
        command
    )


def running(mountpoint: str) -> tuple[Mount, str]:
    """A mount whose process runs, and the path in it. Raises MountError."""
    mount, inside = find_mount(mountpoint)
    if not mount.alive:
        raise MountError(f"{mount.mountpoint} has no running process")
    return mount, inside


def by_mount(paths: Iterable[str]) -> list[tuple[Mount, tuple[str, ...]]]:
    """The mounts that paths lie in, each with the paths relative to it. Raises MountError."""
    found: dict[str, tuple[Mount, tuple[str, ...]]] = {}
    for path in paths:
        mount, inside = running(path)
        _, others = found.get(mount.mountpoint, (mount, ()))
        found[mount.mountpoint] = mount, (*others, inside)
    return list(found.values())


def _tell(as_json: bool, value: object, text: str) -> None:
    if as_json:
        output.write_json(value)
    else:
        output.write_line(text)


@click.command("pause", short_help="Send nothing from a running mount for now.")
@click.argument("mountpoint", type=MOUNTED)
@json_option
def pause(mountpoint: str, as_json: bool) -> int:
    """Begin no upload from now on, until s3mount resume. What is on its way arrives; reading goes on.

    Programs can write as long as the spool has room. Who waits until all is in S3 (s3mount wait, unmount) is told
    at once, and unmounted, the mount keeps what is left for the next one, which sends it. Repeatable.
    """
    return _pause(mountpoint, True, as_json)


@click.command("resume", short_help="Let a paused mount send again.")
@click.argument("mountpoint", type=MOUNTED)
@json_option
def resume(mountpoint: str, as_json: bool) -> int:
    """Send again what waits, after s3mount pause. Repeatable."""
    return _pause(mountpoint, False, as_json)


def _pause(mountpoint: str, is_paused: bool, as_json: bool) -> int:
    mount, _ = running(mountpoint)
    with mount.connect() as connection:
        connection.ask(protocol.Pause(is_paused))
    text = "uploads are paused" if is_paused else "uploads go on"
    _tell(as_json, {"mountpoint": mount.mountpoint, "paused": is_paused}, text)
    return 0


@click.command("loglevel", short_help="Change how much a running mount logs.")
@click.argument("mountpoint", type=MOUNTED)
@click.argument("level", type=click.Choice(LEVELS))
@json_option
def loglevel(mountpoint: str, level: str, as_json: bool) -> int:
    """Log from LEVEL on from now on. The next mount is as its own --log-level says."""
    mount, _ = running(mountpoint)
    with mount.connect() as connection:
        connection.ask(protocol.SetLogLevel(level))
    _tell(as_json, {"mountpoint": mount.mountpoint, "log_level": level}, f"log level is {level}")
    return 0


@click.command("evict", short_help="Drop files from the cache.")
@paths_argument
@json_option
def evict(paths: tuple[str, ...], as_json: bool) -> int:
    """Drop from the cache what is at and below PATHs in mounts: the next read asks S3.

    What is open or pinned stays, and so does what is not in S3 yet, which is not in the cache.
    """
    for mount, inside in by_mount(paths):
        with mount.connect() as connection:
            answer = connection.ask(protocol.Evict(inside), timeout_s=EVICTION_TIMEOUT_S)
        done = msgspec.convert(answer, Evicted)
        text = f"{done.files} files evicted ({size_text(done.size_bytes)})"
        for count, why in ((done.in_use, "open"), (done.pinned, "pinned")):
            text += f"; {count} stay, as they are {why}" if count else ""
        _tell(as_json, {"mountpoint": mount.mountpoint, **answer}, text)
    return 0


@click.command("prefetch", short_help="Bring trees into the cache, ahead of a job.")
@paths_argument
@json_option
def prefetch(paths: tuple[str, ...], as_json: bool) -> int:
    """Bring all that is at and below PATHs in mounts into the cache, and tell how far it is.

    Interrupted, it stops, and what has arrived stays; begun anew, it fetches what is not there. The cache may
    evict it later: s3mount pin keeps it. More than the cache may hold is refused.

    Exit status 0: all is there. 1: some files could not be fetched, the first of which is named.
    """
    return _bring(paths, protocol.Prefetch, as_json, "in the cache")


@click.command("pin", short_help="Keep trees in the cache.")
@paths_argument
@json_option
def pin(paths: tuple[str, ...], as_json: bool) -> int:
    """Bring all that is at and below PATHs in mounts into the cache, and keep it there, until s3mount unpin.

    Also in later mounts with the same state folder, and as it changes: what others change is looked for every five
    minutes. Interrupted, the mount goes on in the background; s3mount status tells what is pinned.

    Exit status as of s3mount prefetch.
    """
    return _bring(paths, protocol.Pin, as_json, "pinned")


def _bring(
    paths: tuple[str, ...],
    request: type[protocol.Prefetch | protocol.Pin],
    as_json: bool,
    what: str,
) -> int:
    failed = 0
    for mount, inside in by_mount(paths):
        work = _watch(mount, request(inside))
        text = f"{work.files} files {what} ({size_text(work.size_bytes)})"
        if work.failed:
            text += f"; {work.failed} could not be fetched, first {work.error}"
        about = {"mountpoint": mount.mountpoint, **msgspec.to_builtins(work)}
        _tell(as_json, about, text)
        failed += work.failed
    return 1 if failed else 0


def _watch(mount: Mount, request: protocol.Request) -> TreeWork:
    """Have it done, showing how far it is; what was done. Raises MountError and what the mount says."""
    line = StatusLine()
    with mount.connect() as connection:
        connection.send(request)
        try:
            for answer in connection.answers(ANSWER_TIMEOUT_S):
                if isinstance(answer, protocol.Done):
                    return msgspec.convert(answer.result, TreeWork)
                if isinstance(answer, protocol.Failed):
                    raise Refused(answer.message, answer.exit_code)
                if isinstance(answer, protocol.TreeProgress):
                    line(_progress(answer.work))
        finally:
            line.clear()
    raise MountError(f"the process of {mount.mountpoint} ended meanwhile")


def _progress(work: TreeWork) -> str:
    text = (
        f"{work.files} of {work.files_total} files, "
        f"{size_text(work.size_bytes)} of {size_text(work.bytes_total)}"
    )
    return f"{text}; {work.failed} failed" if work.failed else text


@click.command("unpin", short_help="Let the cache evict what was pinned.")
@paths_argument
@json_option
def unpin(paths: tuple[str, ...], as_json: bool) -> int:
    """Keep PATHs, as they were pinned, no longer; a mount point unpins all of the mount.

    What they hold stays in the cache until its room is wanted.
    """
    for mount, inside in by_mount(paths):
        with mount.connect() as connection:
            answer = connection.ask(protocol.Unpin(() if "" in inside else inside))
        unpinned = [f"{mount.mountpoint}/{path}".rstrip("/") for path in answer["paths"]]
        _tell(as_json, {"mountpoint": mount.mountpoint, **answer}, "\n".join(unpinned))
    return 0
