"""``s3mount mount BUCKET MOUNTPOINT``: from the command line to the settings, and off."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from s3mount import mountinfo
from s3mount.cli.config_file import expand
from s3mount.cli.manifests.at_option import SNAPSHOTS, shown_source, what_to_mount
from s3mount.cli.mounts.mountoptions import Options
from s3mount.cli.objects.object_options import new_objects, object_options
from s3mount.cli.options import (
    absolute,
    expert_option,
    help_all_option,
    option,
    store_config,
    store_options,
)
from s3mount.cli.param_types import (
    SNAPSHOTS_FOLDER,
    mode,
    seconds,
    size,
    size_from,
    snapshots_folder,
    umask,
)
from s3mount.config import (
    GIB,
    MIB,
    MountConfig,
    RunConfig,
    default_cache_dir,
    default_state_dir,
    state_without_home,
)
from s3mount.errors import UsageError
from s3mount.logs import FORMS, LEVELS
from s3mount.names import normal_prefix


class _MountCommand(click.Command):
    """Knows ``@NAME`` of the configuration file, and ``--snapshots`` with and without a name; without one, click
    would take the next word for it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = f"--snapshots={SNAPSHOTS_FOLDER}"
        words = [named if arg == "--snapshots" else arg for arg in args]
        if not ctx.resilient_parsing:
            words, ctx.default_map = expand(words, self)
        return super().parse_args(ctx, words)


@click.command(
    "mount",
    cls=_MountCommand,
    short_help="Show a bucket as a folder.",
    epilog="Sizes: 512MiB, 10G. Times: 250ms, 1s, 5m. Each option may come from a variable as well: "
    "--part-size from S3MOUNT_PART_SIZE.",
)
@click.argument("bucket")
@click.argument("mountpoint", type=click.Path(path_type=str))
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; log to stderr.")
@click.option("-o", "options", multiple=True, metavar="A,B=C", help="Options as fstab has them.")
@option("--read-only", is_flag=True, help="Refuse every change.")
@option(
    "--at", metavar="TIME", help="Show the bucket as it was: 2026-10-01T00:00Z, 2026-10-01, -3d."
)
@option("--manifest", is_flag=True, help="BUCKET is a manifest: a file, or s3://BUCKET/KEY.")
@option("--bucket", "manifest_bucket", help="Where the keys of a manifest lie that does not tell.")
@option(
    "--snapshots",
    type=snapshots_folder,
    default="",
    metavar="[=NAME]",
    help="Show the past as .snapshots/TIME below the mount point, or as NAME/TIME.",
)
@option("--prefix", default="", help="Mount only the keys below this prefix.")
@store_options
@option("--cache-dir", type=click.Path(), help="Where to keep what was read.")
@option("--cache-size", type=size_from(MIB), default=10 * GIB, help="Its limit.  [default: 10G]")
@expert_option(
    "--cache-free",
    type=size_from(64 << 10),
    default=GIB,
    help="Leave so much of its disk free, at most a tenth.  [default: 1G]",
)
@option("--state-dir", type=click.Path(), help="Where to keep what is not in S3 yet.")
@option(
    "--spool-size",
    type=size_from(MIB, or_zero=False),
    default=100 * GIB,
    help="Its limit.  [default: 100G]",
)
@expert_option(
    "--spool-wait",
    type=seconds,
    default=30.0,
    help="How long a writer waits for room in it before ENOSPC.  [default: 30s]",
)
@option("--part-size", type=size, default=8 * MIB, help="Of multipart uploads.  [default: 8M]")
@expert_option(
    "--prefetch-max",
    type=size_from(64 << 10),
    default=256 * MIB,
    help="Bytes on their way ahead of all readers; 0: none.  [default: 256M]",
)
@option("--uploads", type=int, default=16, help="Uploads at once.  [default: 16]")
@expert_option(
    "--upload-delay", type=seconds, default=0.25, help="Calm before an upload.  [default: 0.25s]"
)
@option(
    "--on-conflict",
    type=click.Choice(["keep-both", "overwrite", "hold"]),
    default="keep-both",
    help="When somebody else wrote a file first.  [default: keep-both]",
)
@option(
    "--fsync",
    type=click.Choice(["local", "s3"]),
    default="local",
    help="Where fsync() waits for the bytes to be.  [default: local]",
)
@option("--write-through", is_flag=True, help="close() waits until S3 has the file.")
@option(
    "--metadata-ttl",
    type=seconds,
    default=1.0,
    help="How long names and sizes are believed.  [default: 1s]",
)
@option(
    "--offline-wait",
    type=seconds,
    default=10.0,
    help="How long reads wait for S3 once it cannot be reached, then fail.  [default: 10s]",
)
@option(
    "--attributes",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Mode, owner and times kept with the objects.  [default: auto]",
)
@option("--uid", type=int, default=None, help="Owner of files without one.  [default: you]")
@option("--gid", type=int, default=None, help="Group of files without one.  [default: yours]")
@option("--file-mode", type=mode, help="Mode of files without one.  [default: 644]")
@option("--dir-mode", type=mode, help="Mode of folders without one.  [default: 755]")
@option("--umask", type=umask, help="What is taken from 666 and 777 for both.  [default: 022]")
@option("--allow-other", is_flag=True, help="Let other users in, as the modes say.")
@option("--suid", is_flag=True, help="Honour set-id bits; only in a bucket you trust.")
@option("--dev", is_flag=True, help="Honour device nodes; only in a bucket you trust.")
@option("--xattr", is_flag=True, help="Extended attributes; makes listings slower.")
@object_options
@option("--nonempty", is_flag=True, help="Mount over a folder that is not empty.")
@option("--log-file", type=click.Path(), help="[default: 'log' in the state folder]")
@option("--log-level", type=click.Choice(LEVELS), default="info", help="[default: info]")
@option("--log-format", type=click.Choice(FORMS), default="text", help="[default: text]")
@option(
    "--metrics",
    default="",
    metavar="[HOST:]PORT",
    help="Serve metrics, and a page that shows the mount, by HTTP there.",
)
@option(
    "--drain-timeout",
    type=seconds,
    default=60.0,
    help="Time to send what is left when told to stop.  [default: 60s]",
)
@option(
    "--dedupe/--no-dedupe",
    default=True,
    help="Let S3 copy what it has already.  [default: dedupe]",
)
@option("--packs", is_flag=True, help="Show what is in the packs (tar files) of the folder.")
@option(
    "--pack-below",
    type=size_from(1, or_zero=True),
    default=0,
    metavar="SIZE",
    help="Send new files that are smaller by packs, at most 1M.",
)
@expert_option(
    "--pack",
    "pack_globs",
    multiple=True,
    metavar="GLOB",
    help="And those that it fits, up to 1M; may be given again.",
)
@expert_option("--no-fast-loop", is_flag=True, help="Never poll for the next request.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when it is mounted.")
@click.option("--ready-fd", type=int, hidden=True)
@help_all_option
@click.pass_context
def mount(ctx: click.Context, /, **given: Any) -> int:
    """Show BUCKET (or s3://BUCKET/PREFIX) as a folder at MOUNTPOINT; a MANIFEST in its place is shown
    read-only, each file at the version it names.

    Returns when the mount answers, or with the reason why it does not. Every option may be given with
    -o as well, with _ or -; one given by name wins. AWS's own variables and files (AWS_PROFILE,
    ~/.aws/config, ...) are honoured.
    """
    values = _with_mount_options(ctx, given)
    config = mount_config(values)
    run = run_config(values)
    refuse_undecodable(config, run)
    if run.foreground or run.ready_fd is not None:
        if config.past is None or config.past.at_ns is not None:
            _prepare_engine(run)
        from s3mount.app.mount import run_mount

        if config.past is not None:
            from s3mount.app.snapshot import build_snapshot_parts

            return run_mount(config, run, build_snapshot_parts)
        from s3mount.app.parts import build_parts

        return run_mount(config, run, build_parts)
    return _in_background(ctx.obj, quiet=values["quiet"])


def refuse_undecodable(config: MountConfig, run: RunConfig) -> None:
    """Raise UsageError for a path that is not UTF-8: a mount's records, in JSON, cannot name it."""
    manifest = config.past.manifest if config.past is not None else ""
    for what, path in (
        ("mount point", config.mountpoint),
        ("state folder", config.state_dir),
        ("cache folder", config.cache_dir),
        ("log file", run.log_file or ""),
        ("manifest", manifest),
    ):
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        if shown != path:
            raise UsageError(f"the {what} {shown} is not UTF-8; choose another path")


def _prepare_engine(run: RunConfig) -> None:
    """Start it before all else is imported, which takes as long: a mount is there a third sooner."""
    from s3mount.engine.process import prepare_engine

    # Should it fail, the one that is started when it is needed says why. In the background the folder
    # that the command was given in is not kept busy.
    with contextlib.suppress(OSError):
        prepare_engine(folder=None if run.foreground else "/")


def mount_config(values: dict[str, Any]) -> MountConfig:
    """The settings of a mount from the command's values. Raises UsageError and click.UsageError."""
    bucket, prefix, past = what_to_mount(values)
    if prefix and values["prefix"]:
        raise click.UsageError("give the prefix in the bucket's URL or with --prefix, not both")
    store = store_config(
        values, bucket, offline_wait_s=values["offline_wait"], new_objects=new_objects(values)
    )
    config = MountConfig(
        store=store,
        mountpoint=_resolved(values["mountpoint"]),
        prefix=prefix or normal_prefix(values["prefix"]),
        read_only=values["read_only"] or past is not None,
        allow_other=values["allow_other"],
        suid=values["suid"],
        dev=values["dev"],
        xattr=values["xattr"],
        uid=os.getuid() if values["uid"] is None else values["uid"],
        gid=os.getgid() if values["gid"] is None else values["gid"],
        file_mode=_mode(values, "file_mode", 0o666),
        dir_mode=_mode(values, "dir_mode", 0o777),
        metadata_ttl_s=values["metadata_ttl"],
        attributes=values["attributes"],
        cache_bytes_max=values["cache_size"],
        cache_free_bytes_min=values["cache_free"],
        spool_bytes_max=values["spool_size"],
        room_wait_s=values["spool_wait"],
        prefetch_bytes_max=values["prefetch_max"],
        part_bytes=values["part_size"],
        uploads_max=values["uploads"],
        upload_delay_s=values["upload_delay"],
        on_conflict=values["on_conflict"],
        fsync=values["fsync"],
        write_through=values["write_through"],
        fast_loop=not values["no_fast_loop"],
        dedupe=values["dedupe"],
        packs=values["packs"],
        pack_below=values["pack_below"],
        pack_globs=tuple(values["pack_globs"]),
        cache_dir=absolute(values["cache_dir"]) or str(default_cache_dir()),
        snapshots=values["snapshots"],
        past=past,
    )
    base = absolute(values["state_dir"]) or str(default_state_dir())
    if past is not None:
        base = os.path.join(base, SNAPSHOTS)
    state_dir = os.path.join(base, config.identity)
    if values["state_dir"] is None and not os.environ.get("HOME"):
        earlier = state_without_home(config.identity)
        # What lies there is sent from there.
        state_dir = str(earlier) if earlier.is_dir() else state_dir
    return msgspec.structs.replace(config, state_dir=state_dir)


def _mode(values: dict[str, Any], name: str, everything: int) -> int:
    """The mode that was named, else what the umask leaves of ``everything``."""
    named: int | None = values[name]
    if named is not None:
        return named
    masked: int = 0o022 if values["umask"] is None else values["umask"]
    return everything & ~masked


def run_config(values: dict[str, Any]) -> RunConfig:
    """How the mount's process runs, from the command's values."""
    return RunConfig(
        source=shown_source(values),
        foreground=values["foreground"],
        nonempty=values["nonempty"],
        kernel_options=tuple(values["kernel"]),
        log_file=absolute(values["log_file"]),
        log_level=values["log_level"],
        log_format=values["log_format"],
        drain_timeout_s=values["drain_timeout"],
        metrics=_monitored(values["metrics"]),
        ready_fd=values["ready_fd"],
    )


def _monitored(address: str) -> str:
    """``address``, if something can listen there. Raises UsageError."""
    if address:
        from s3mount.cli.mounts.metrics import address_of

        address_of(address)
    return address


def _with_mount_options(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The values with those of ``-o`` filled in where no option named the same thing."""
    options = Options(ctx.command.params)
    for words in given["options"]:
        options.take(ctx, words)
    by_words = {
        name: value
        for name, value in options.values.items()
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE
    }
    return {**given, **by_words, "kernel": options.kernel}


def _resolved(mountpoint: str) -> str:
    """The mount point made absolute; a mount that is there already is not looked at."""
    plain = mountinfo.absolute(mountpoint)
    top = mountinfo.topmost_at(plain, mountinfo.read_mounts())
    if top is not None and top.filesystem == mountinfo.FILESYSTEM_TYPE:
        return plain
    return os.path.realpath(plain)


def _in_background(arguments: list[str], *, quiet: bool) -> int:
    from s3mount.daemon.launch import Ready, start_in_background

    news = start_in_background(arguments)
    if isinstance(news, Ready):
        if not quiet:
            click.echo(news.message)
        return 0
    click.echo(f"s3mount: {news.message}", err=True)
    return news.exit_code
