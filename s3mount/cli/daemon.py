"""``s3mount daemon``: takes files from others and sends them."""

from __future__ import annotations

import grp
import os
from pathlib import Path
from typing import Any

import click
import msgspec

from s3mount.cli.objects.object_options import new_objects, object_options
from s3mount.cli.options import (
    absolute,
    expert_option,
    help_all_option,
    option,
    store_config,
    store_options,
)
from s3mount.cli.param_types import seconds, size, size_from
from s3mount.config import GIB, MIB, DaemonConfig, StoreConfig, TcpConfig, default_state_dir
from s3mount.errors import UsageError
from s3mount.logs import FORMS, LEVELS


@click.command("daemon", short_help="Take files from others, and send them.")
@option("--socket", type=click.Path(), help="Where to listen.  [default: in the run folder]")
@option("--group", metavar="GROUP", help="Let its members hand files over as well.")
@option(
    "--tcp",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[HOST:PORT]",
    help="Serve s3daemon's clients as well, at localhost:15555 or as its variables say.",
)
@option(
    "--tcp-root",
    multiple=True,
    type=click.Path(),
    metavar="DIR",
    help="Let anybody on this machine have sent by them what lies below; repeatable.",
)
@store_options
@object_options
@option("--state-dir", type=click.Path(), help="Where to keep what is not in S3 yet.")
@option(
    "--spool-size",
    type=size_from(MIB, or_zero=False),
    default=100 * GIB,
    help="Its limit, for each bucket.  [default: 100G]",
)
@option("--part-size", type=size, default=8 * MIB, help="Of multipart uploads.  [default: 8M]")
@option("--uploads", type=int, default=16, help="Large uploads at once.  [default: 16]")
@expert_option(
    "--idle-after",
    type=seconds,
    default=600.0,
    help="End a bucket's process when it had nothing to do for so long.  [default: 10m]",
)
@option("--log-file", type=click.Path(), help="[default: stderr]")
@option("--log-level", type=click.Choice(LEVELS), default="info", help="[default: info]")
@option("--log-format", type=click.Choice(FORMS), default="text", help="[default: text]")
@option(
    "--drain-timeout",
    type=seconds,
    default=60.0,
    help="Time to send what is left when told to stop.  [default: 60s]",
)
@help_all_option
def daemon(**given: Any) -> int:
    """Take files that s3mount send hands over, keep them safe, and send them to S3.

    Runs until a signal, with connections that stay warm and the credentials of its own user. What was taken survives
    kill -9, and is sent after the next start. s3mount status, wait, retry, discard and export take s3://BUCKET for
    what it has for a bucket.
    """
    from s3mount.app.daemon import run_daemon

    return run_daemon(daemon_config(given))


def daemon_config(given: dict[str, Any]) -> DaemonConfig:
    """The settings from the command's values. Raises UsageError and click.UsageError."""
    group = _gid(given["group"])
    if group is not None and not given["socket"] and not os.environ.get("LISTEN_FDS"):
        raise UsageError(
            "--group needs --socket in a folder that its members can enter: the run folder is private"
        )
    tcp = _tcp_config(given)
    store = store_config(given, new_objects=new_objects(given))
    return DaemonConfig(
        store=store if tcp is None else _as_s3daemon(store),
        tcp=tcp,
        state_dir=absolute(given["state_dir"]) or str(default_state_dir()),
        socket=absolute(given["socket"]) or str(_own_socket()),
        group=group,
        spool_bytes_max=given["spool_size"],
        part_bytes=given["part_size"],
        uploads_max=given["uploads"],
        idle_after_s=given["idle_after"],
        log_file=absolute(given["log_file"]),
        log_level=given["log_level"],
        log_format=given["log_format"],
        drain_timeout_s=given["drain_timeout"],
    )


def _own_socket() -> Path:
    from s3mount.daemon.registry import writable_run_dir
    from s3mount.daemon.send_client import SOCKET_NAME

    return writable_run_dir() / SOCKET_NAME


def _gid(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"--group {name}: there is no such group") from None


def _tcp_config(given: dict[str, Any]) -> TcpConfig | None:
    """``--tcp`` and s3daemon's variables. Raises UsageError."""
    if given["tcp"] is None:
        if given["tcp_root"]:
            raise UsageError("--tcp-root is of --tcp")
        return None
    host, colon, port = given["tcp"].rpartition(":")
    if given["tcp"] and not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise UsageError(f"--tcp {given['tcp']}: HOST:PORT, as localhost:15555")
    return TcpConfig(
        host=host.strip("[]") or os.environ.get("S3DAEMON_HOST", "localhost"),
        port=int(port or _number("S3DAEMON_PORT", 15555)),
        roots=tuple(os.path.abspath(os.path.expanduser(each)) for each in given["tcp_root"]),
        clients_max=int(_number("S3DAEMON_MAX_CLIENTS", 25)),
        log_path=absolute(os.environ.get("S3DAEMON_LOG")) or "",
    )


def _as_s3daemon(store: StoreConfig) -> StoreConfig:
    """With what s3daemon's variables say of S3: path style, as it had it. Raises UsageError."""
    timeouts = msgspec.structs.replace(
        store.timeouts,
        connect_s=_number("S3DAEMON_CONNECT_TIMEOUT", store.timeouts.connect_s),
        tries=int(_number("S3DAEMON_MAX_RETRIES", 2)),
    )
    return msgspec.structs.replace(
        store,
        endpoint_url=store.endpoint_url or os.environ.get("S3_ENDPOINT_URL"),
        path_style=True,
        connections_max=int(_number("S3DAEMON_MAX_CONNECTIONS", store.connections_max)),
        timeouts=timeouts,
    )


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    try:
        number = default if text is None else float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise UsageError(f"{variable}={text}: it must be a number above 0")
    return number
