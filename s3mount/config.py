"""Frozen, validated settings. Units stand in the names; the command line and S3MOUNT_* fill them in."""

from __future__ import annotations

import hashlib
import os
import pwd
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from s3mount.customer_key import CustomerKey
from s3mount.errors import UsageError
from s3mount.refs import ObjectHeaders

MIB = 1 << 20
GIB = 1 << 30

PART_BYTES_MIN = 5 * MIB
"""S3's least part size (all but the last)."""
PART_BYTES_MAX = 5 * GIB
"""S3's greatest part size, and the greatest single PUT or COPY."""


DIRECTORY_BUCKET_ENDINGS = ("--x-s3", "--xa-s3")
"""AWS S3 User Guide, "Directory bucket naming rules"; no other bucket may end so."""


OUTBOX = "daemon-"
"""Begins the names of a daemon's state folders, so that a mount of the same bucket has its own."""
START_S_PER_BYTE = 1e-6
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Factor = Annotated[float, Meta(ge=1, le=100)]


class TimeoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What deadlines are made of (``flow.timeouts`` has the formula), with the values that are good for most.

    ``base_s`` and ``fraction``: a body may take ``base_s`` and ``fraction`` times what is expected. ``backoff``: each
    retry may take so many times longer than the try before. ``tries``: so often a request is sent in all.
    ``average_weight``: so much of the running average is its old value, when a transfer of a MiB or more has ended.
    ``s_per_byte``: seconds per byte before any transfer has told, by kind of request; ``other`` for all that are not
    named, which is 1 MB/s where it is not. ``answer_start_s``: the wait for an answer before any has come; afterwards
    it is never shorter than ``answer_min_s`` or longer than ``answer_max_s``. ``connect_s``: for a connection.
    """

    base_s: Seconds = 0.5
    fraction: Factor = 1.5
    backoff: Factor = 1.5
    tries: Annotated[int, Meta(ge=1)] = 8
    average_weight: Annotated[float, Meta(ge=0, lt=1)] = 0.7
    s_per_byte: dict[str, Annotated[float, Meta(gt=0, le=1)]] = msgspec.field(default_factory=dict)
    answer_start_s: Seconds = 5.0
    answer_min_s: Seconds = 3.0
    answer_max_s: Seconds = 60.0
    connect_s: Seconds = 5.0

    def __hash__(self) -> int:
        """Of a part of it: dicts have none."""
        return hash((self.base_s, self.tries, frozenset(self.s_per_byte.items())))

    def start_s_per_byte(self, kind: str) -> float:
        """Seconds per byte of a request of this kind before any transfer has told."""
        return self.s_per_byte.get(kind, self.s_per_byte.get("other", START_S_PER_BYTE))


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bucket is and how to talk to it. Credentials are boto3's business, never held here, and of keys
    for SSE-C only where they lie.

    ``new_objects`` is what new objects get beside their bytes. Its encryption and grants are also for those that
    have nothing of the kind; its storage class is for new ones alone.
    """

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    sign_requests: bool = True
    path_style: bool = False
    request_payer: bool = False
    ca_bundle: str | None = None
    verify_tls: bool = True
    timeouts: TimeoutSettings = TimeoutSettings()
    connections_max: int = 128
    offline_wait_s: float = 10.0
    """How long from the start of an outage on requests that read wait for its end; then they fail at once."""
    estimates_dir: str = ""
    """Where what is learnt of each endpoint's speed is kept for the next run; empty: nowhere."""
    perf_logs: tuple[str, ...] = ()
    """Files that get a line for each request: JSON, or CSV where the name ends in ``.csv``."""
    up_bytes_per_s: int = 0
    down_bytes_per_s: int = 0
    """How fast bodies of requests and answers may go, over all connections to the bucket; 0: as fast as they can."""
    background: bool = False
    """Transfers yield to whatever else uses the line and the machine."""
    new_objects: ObjectHeaders = ObjectHeaders()
    customer_key: CustomerKey | None = None
    """By which objects are encrypted and read (SSE-C)."""
    packs_in: str = ""
    """Members of the packs in this ``BUCKET/FOLDER/`` are objects to a command."""
    copy_source_key: CustomerKey | None = None
    """That of the sources of copies inside S3, where it is another."""

    def __post_init__(self) -> None:
        """Raise UsageError for values that cannot work together."""
        if self.up_bytes_per_s < 0 or self.down_bytes_per_s < 0:
            raise UsageError("a rate must not be negative")
        encryption = self.new_objects.encryption
        if self.new_objects.kms_key_id and encryption not in ("aws:kms", "aws:kms:dsse"):
            raise UsageError("--sse-kms-key-id needs --sse aws:kms or aws:kms:dsse")
        if encryption is not None and self.customer_key is not None:
            raise UsageError("--sse names another encryption than by a key of yours (SSE-C)")
        if self.new_objects.bucket_key and encryption != "aws:kms":
            raise UsageError("--bucket-key needs --sse aws:kms")

    @property
    def is_directory_bucket(self) -> bool:
        """Is it a directory bucket (S3 Express One Zone)? Their names, and those of their access points, tell."""
        return self.bucket.endswith(DIRECTORY_BUCKET_ENDINGS)


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot mount shows: a manifest, or a bucket as it was at ``at_ns``.

    ``manifest`` is a local path or an ``s3://`` location, empty with ``at_ns``. ``bucket`` is where the
    keys lie of a manifest that names no bucket. ``said`` is the time as it was given, for people.
    """

    manifest: str = ""
    bucket: str | None = None
    at_ns: int | None = None
    said: str = ""


class MountConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one mount. ``prefix`` is empty or ends with ``/``.

    ``past`` is set for a snapshot mount: it writes nothing and has no spool.
    """

    store: StoreConfig
    mountpoint: str
    prefix: str = ""
    state_dir: str = ""
    cache_dir: str = ""
    read_only: bool = False
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    xattr: bool = False
    uid: int = 0
    gid: int = 0
    file_mode: int = 0o644
    dir_mode: int = 0o755
    metadata_ttl_s: float = 1.0
    attributes: Literal["auto", "always", "never"] = "auto"
    cache_bytes_max: int = 10 * GIB
    cache_free_bytes_min: int = GIB
    spool_bytes_max: int = 100 * GIB
    prefetch_bytes_max: int = 256 * MIB
    part_bytes: int = 8 * MIB
    uploads_max: int = 16
    room_wait_s: float = 30.0
    upload_delay_s: float = 0.25
    on_conflict: Literal["keep-both", "overwrite", "hold"] = "keep-both"
    fsync: Literal["local", "s3"] = "local"
    write_through: bool = False
    fast_loop: bool = True
    dedupe: bool = True
    packs: bool = False
    """Members of the packs in the mounted folder are shown as files."""
    pack_below: int = 0
    pack_globs: tuple[str, ...] = ()
    """New files that are smaller than this, or such as any of these names fits, are sent in packs."""
    snapshots: str = ""
    past: Past | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for values that cannot work together."""
        if not PART_BYTES_MIN <= self.part_bytes <= PART_BYTES_MAX:
            raise UsageError(f"--part-size {self.part_bytes}: S3 takes parts of 5 MiB to 5 GiB")
        if self.prefix and not self.prefix.endswith("/"):
            raise UsageError(f"prefix {self.prefix!r} must end with '/'")
        if self.uploads_max < 1:
            raise UsageError("--uploads must be at least 1")
        if self.metadata_ttl_s < 0:
            raise UsageError("--metadata-ttl must not be negative")
        if self.pack_below > MIB:
            raise UsageError("--pack-below takes at most 1M: larger files gain nothing in a pack")
        if self.past is not None and self.has_packs:
            raise UsageError("the past is shown without packs: leave out --packs and --pack-below")

    @property
    def has_packs(self) -> bool:
        """Are members of packs files?"""
        return self.packs or self.pack_below > 0 or bool(self.pack_globs)

    @property
    def identity(self) -> str:
        """A short digest of what is mounted (endpoint, bucket, prefix): names its state folder.

        Snapshots have one for each mount point, as any number of them may show the same.
        """
        what = "\0".join((self.store.endpoint_url or "aws", self.store.bucket, self.prefix))
        if self.past is not None:
            what = "\0".join((what, self.past.manifest, str(self.past.at_ns), self.mountpoint))
        return hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class TcpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a daemon serves s3daemon's clients: at ``host`` (of this machine alone) and ``port``.

    What lies below ``roots`` anybody here may have sent. ``clients_max`` are served at once, ``log_path`` gets a
    line for each request (empty: stderr).
    """

    host: str = "localhost"
    port: int = 15555
    roots: tuple[str, ...] = ()
    clients_max: int = 25
    log_path: str = ""


class DaemonConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one daemon. ``store`` is that of each bucket, but for the bucket.

    ``state_dir`` holds a state folder for each bucket. ``socket`` is where it listens for files, ``group`` whose
    members may hand some over as well. Each bucket has up to ``spool_bytes_max``, and a process of its own until
    nothing was to be done for ``idle_after_s``.
    """

    store: StoreConfig
    state_dir: str
    socket: str
    group: int | None = None
    tcp: TcpConfig | None = None
    spool_bytes_max: int = 100 * GIB
    part_bytes: int = 8 * MIB
    uploads_max: int = 16
    idle_after_s: float = 600.0
    log_file: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: float = 60.0

    def outbox(self, bucket: str) -> MountConfig:
        """The settings of one bucket's spool and uploads: as of a mount that nobody sees."""
        config = MountConfig(
            store=msgspec.structs.replace(self.store, bucket=bucket),
            mountpoint=f"s3://{bucket}",
            uid=os.getuid(),
            gid=os.getgid(),
            cache_bytes_max=0,
            spool_bytes_max=self.spool_bytes_max,
            part_bytes=self.part_bytes,
            uploads_max=self.uploads_max,
            upload_delay_s=0.0,
            on_conflict="overwrite",
        )
        folder = os.path.join(self.state_dir, f"{OUTBOX}{config.identity}")
        return msgspec.structs.replace(
            config, state_dir=folder, cache_dir=os.path.join(folder, "cache")
        )


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the process of one mount runs, beside what it mounts.

    ``source`` is the bucket as the user named it. ``kernel_options`` go to the kernel as they are.
    ``metrics`` is where a process tells of it by HTTP; empty: nowhere.
    ``ready_fd`` is the pipe on which a background mount tells its parent how the start went.
    """

    source: str
    foreground: bool = False
    nonempty: bool = False
    kernel_options: tuple[str, ...] = ()
    log_file: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: float = 60.0
    metrics: str = ""
    ready_fd: int | None = None


def default_state_dir() -> Path:
    """``$XDG_STATE_HOME/s3mount``, or ``~/.local/state/s3mount``; /var/lib/s3mount for who has no home."""
    return _xdg("XDG_STATE_HOME", ".local/state", "/var/lib")


def state_without_home(identity: str) -> Path:
    """Where a mount started without HOME kept its state before the list of users was asked."""
    return Path("/var/lib/s3mount") / identity


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/s3mount``, or ``~/.cache/s3mount``; /var/cache/s3mount for who has no home."""
    return _xdg("XDG_CACHE_HOME", ".cache", "/var/cache")


def _xdg(variable: str, below_home: str, without_home: str) -> Path:
    given = os.environ.get(variable)
    if given and os.path.isabs(given):
        return Path(given) / "s3mount"
    home = os.environ.get("HOME") or _home_of_user()
    return Path(home) / below_home / "s3mount" if home else Path(without_home) / "s3mount"


def _home_of_user() -> str | None:
    """The home folder that the machine's list of users names, if it is there.

    Programs that mount(8), cron or a container start may have no HOME; boto3 looks there as well.
    """
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return None
    return home if os.path.isdir(home) else None
