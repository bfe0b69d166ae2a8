"""What a command and a running mount say to each other: one JSON value a line, over a Unix socket.

A connection carries one request and then its answers: any number of ``Progress``, and at last one
``Done`` or ``Failed``. ``Leave`` is answered twice: ``Flushed`` (or ``Failed``) when the caller may
unmount, which is left out where the mount ends before that; then ``Ended``, when the process has sent
what it could and is about to exit. A command gives up on a request by closing the connection.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from s3mount.refs import MountEvent, TreeWork

REQUEST_BYTES_MAX = 1 << 20
ANSWER_BYTES_MAX = 64 << 20
"""A status that lists every parked file can be long; this bounds a peer that speaks nonsense."""


class Status(msgspec.Struct, frozen=True, tag="status"):
    """Everything about the mount; ``Done.result`` is its snapshot."""


class StatusOf(msgspec.Struct, frozen=True, tag="status-of"):
    """One file, by its path relative to the mount; ``Done.result`` is what is known of it."""

    path: str


class Wait(msgspec.Struct, frozen=True, tag="wait"):
    """Done when all changes made so far, or those to ``paths`` (relative to the mount), are in S3."""

    paths: tuple[str, ...] = ()


class Retry(msgspec.Struct, frozen=True, tag="retry"):
    """Try again now what S3 refused at or below ``paths`` (everywhere without); ``Done.result`` has ``keys``.

    ``overwrite``: held conflicts replace what others wrote, else both versions are kept.
    """

    paths: tuple[str, ...] = ()
    overwrite: bool = False


class Discard(msgspec.Struct, frozen=True, tag="discard"):
    """Give up what is pending at or below ``paths``, or only tell (``is_rehearsal``); ``Done.result`` has ``keys``."""

    paths: tuple[str, ...]
    is_rehearsal: bool = False


class Refresh(msgspec.Struct, frozen=True, tag="refresh"):
    """Forget what is known of ``paths`` (relative to the mount; all of it without) and below."""

    paths: tuple[str, ...] = ()


class SetRates(msgspec.Struct, frozen=True, tag="set-rates"):
    """Hold bodies to so many bytes a second from now on, up and down; 0: to none."""

    up_bytes_per_s: int
    down_bytes_per_s: int


class SetLogLevel(msgspec.Struct, frozen=True, tag="set-log-level"):
    """Log from ``level`` on."""

    level: str


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Send nothing from now on, or (``is_paused`` false) go on."""

    is_paused: bool


class Evict(msgspec.Struct, frozen=True, tag="evict"):
    """Drop from the cache what is at and below ``paths``; ``Done.result`` is an ``Evicted``."""

    paths: tuple[str, ...]


class Prefetch(msgspec.Struct, frozen=True, tag="prefetch"):
    """Bring what is at and below ``paths`` into the cache; ``TreeProgress``, then ``Done.result`` is a ``TreeWork``."""

    paths: tuple[str, ...]


class Pin(msgspec.Struct, frozen=True, tag="pin"):
    """As ``Prefetch``, and keep it there from now on."""

    paths: tuple[str, ...]


class Unpin(msgspec.Struct, frozen=True, tag="unpin"):
    """Keep ``paths`` (all that is pinned without) no longer; ``Done.result`` has those ``paths`` that were pinned."""

    paths: tuple[str, ...] = ()


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """The events behind ``seq`` that are still known, as ``Happened``; then those to come, unless ``is_once``.

    Every few seconds ``Happened`` comes without any.
    """

    seq: int = 0
    is_once: bool = False


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """As ``Wait`` for everything; then stays connected until the process has ended."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """A process that only sends what is left after its mount has ended: keep the rest and exit now."""


Request: TypeAlias = (
    Status
    | StatusOf
    | Wait
    | Retry
    | Discard
    | Refresh
    | SetRates
    | SetLogLevel
    | Pause
    | Evict
    | Prefetch
    | Pin
    | Unpin
    | Follow
    | Leave
    | Stop
)


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How much is not in S3 yet, and what S3 said to the first of it that it did not take, if any.

    ``moved`` is higher than ever before when something was sent; a failed try takes its share back.
    """

    files: int
    size_bytes: int
    moved: float
    trouble: str = ""


class TreeProgress(msgspec.Struct, frozen=True, tag="tree-progress"):
    """How much of the trees is in the cache."""

    work: TreeWork


class Happened(msgspec.Struct, frozen=True, tag="happened"):
    """Events, the oldest first."""

    events: list[MountEvent]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The request was carried out."""

    result: dict[str, Any] = {}


class Flushed(msgspec.Struct, frozen=True, tag="flushed"):
    """All changes made before ``Leave`` are in S3."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The mount is gone and the process exits; this much stays in its journal for the next mount.

    ``cut_off`` names who held copies of the mount, which do not answer any more.
    """

    files: int
    size_bytes: int
    cut_off: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It could not be done, for a reason in one line."""

    message: str
    exit_code: int = 1


Answer: TypeAlias = Progress | TreeProgress | Happened | Done | Flushed | Ended | Failed

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """One message as a line."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in a line. Raises msgspec.MsgspecError for anything else."""
    return _requests.decode(line)


def decode_answer(line: bytes) -> Answer:
    """The answer in a line. Raises msgspec.MsgspecError for anything else."""
    return _answers.decode(line)
