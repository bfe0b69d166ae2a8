"""Options that S3MOUNT_ variables fill in, and those by which every command that talks to S3 finds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from s3mount.cli.param_types import rates, timeouts
from s3mount.config import StoreConfig, default_state_dir
from s3mount.customer_key import CustomerKey, keep_descriptor
from s3mount.logs import without_secrets

F = TypeVar("F", bound=Callable[..., Any])

ENVIRONMENT_PREFIX = "S3MOUNT_"


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """A click option that its S3MOUNT_ variable fills in as well."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = ENVIRONMENT_PREFIX + long.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, **settings)


class ExpertOption(click.Option):
    """An option that few need: ``--help`` leaves it out and ``--help-all`` shows it."""

    def __init__(self, *names: Any, **settings: Any) -> None:
        super().__init__(*names, **{**settings, "hidden": True})


def expert_option(*names: str, **settings: Any) -> Callable[[F], F]:
    """``option``, shown by ``--help-all`` alone."""
    return option(*names, cls=ExpertOption, **settings)


def help_all_option(command: F) -> F:
    """Give a command ``--help-all``."""

    def show(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
        if not is_asked or ctx.resilient_parsing:
            return
        experts = [each for each in ctx.command.params if isinstance(each, ExpertOption)]
        for each in experts:
            each.hidden = False
        click.echo(ctx.get_help())
        for each in experts:
            each.hidden = True
        ctx.exit()

    return click.option(
        "--help-all",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show all options, with those for experts, and exit.",
    )(command)


_OPTIONS = (
    option("--endpoint-url", metavar="URL", help="S3 server, where it is not AWS."),
    option("--region", help="AWS region of the bucket."),
    option("--profile", help="Profile in ~/.aws to take credentials from."),
    option("--no-sign-request", is_flag=True, help="Ask anonymously, for public buckets."),
    option("--path-style", is_flag=True, help="Bucket in the path, not in the host name."),
    option("--request-payer", is_flag=True, help="Pay for requests to somebody else's bucket."),
    option(
        "--sse-c-key-file",
        type=click.Path(),
        metavar="FILE",
        help="Encrypt and read with the key in FILE (SSE-C): 32 bytes, or base64.",
    ),
    expert_option(
        "--sse-c-key-fd", type=int, metavar="N", help="The same from an open descriptor."
    ),
    expert_option(
        "--sse-c-key-is-master",
        is_flag=True,
        help="Each object has a key of its own, made of that and its URL, as s3am has it.",
    ),
    option(
        "--ca-bundle",
        type=click.Path(exists=True),
        help="Certificates to trust instead of the system's.",
    ),
    option("--no-verify-ssl", is_flag=True, help="Trust any server certificate."),
    option(
        "--perf-log",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Record each request: JSON lines, or CSV in a .csv file.",
    ),
    option(
        "--bwlimit",
        type=rates,
        default="off",
        metavar="RATE[:RATE]",
        help="Bytes a second to S3 and from it, as 10M, 512K:2M or off:1M.",
    ),
    option("--background", is_flag=True, help="Yield to all else on the line and the machine."),
    expert_option(
        "--timeouts",
        type=timeouts,
        default="",
        metavar="FIELD=N,...",
        help="Deadlines of requests: base_s, fraction, backoff, tries, average_weight, s_per_byte.KIND, "
        "answer_start_s, answer_min_s, answer_max_s, connect_s.",
    ),
)


_recorded_in: ContextVar[str] = ContextVar("recorded_in", default="")


@contextmanager
def recording(path: str) -> Iterator[None]:
    """Within the block all settings that ``store_config`` makes have requests recorded in ``path`` as well."""
    token = _recorded_in.set(path)
    try:
        yield
    finally:
        _recorded_in.reset(token)


def store_options(command: F) -> F:
    """Give a command the options that say where S3 is and how to ask it."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def store_option_list() -> list[click.Option]:
    """The options that ``store_options`` gives a command."""
    command = click.command()(store_options(lambda: None))
    return [each for each in command.params if isinstance(each, click.Option)]


def store_config(values: dict[str, Any], bucket: str = "", **more: Any) -> StoreConfig:
    """The settings that they make, with ``more`` of StoreConfig's. Raises click.UsageError and UsageError."""
    endpoint_url = values["endpoint_url"]
    if endpoint_url is not None and "://" not in endpoint_url:
        raise click.UsageError(
            f"--endpoint-url {endpoint_url}: must begin with https:// or http://"
        )
    if endpoint_url is not None and "@" in urlsplit(endpoint_url).netloc:
        raise click.UsageError(
            f"--endpoint-url {without_secrets(endpoint_url)}: no keys can stand in it; they come from "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    return StoreConfig(
        bucket=bucket,
        endpoint_url=endpoint_url,
        region=values["region"],
        profile=values["profile"],
        sign_requests=not values["no_sign_request"],
        path_style=values["path_style"],
        request_payer=values["request_payer"],
        ca_bundle=absolute(values["ca_bundle"]),
        verify_tls=not values["no_verify_ssl"],
        timeouts=values["timeouts"],
        estimates_dir=str(default_state_dir() / "estimates"),
        perf_logs=tuple(filter(None, (absolute(values["perf_log"]), _recorded_in.get()))),
        up_bytes_per_s=values["bwlimit"][0],
        down_bytes_per_s=values["bwlimit"][1],
        background=values["background"],
        customer_key=customer_key(values, "sse_c_key"),
        **more,
    )


def customer_key(values: dict[str, Any], name: str) -> CustomerKey | None:
    """Where the key for SSE-C lies that the options ``name`` or the variable name, if any.

    Raises EncryptionKeyError, click.UsageError.
    """
    path, descriptor = absolute(values[f"{name}_file"]), values[f"{name}_fd"]
    variable = ENVIRONMENT_PREFIX + name.upper()
    option_names = f"--{name.replace('_', '-')}-file and -fd"
    if path is not None and descriptor is not None:
        raise click.UsageError(f"{option_names} contradict each other")
    if descriptor is not None:
        keep_descriptor(descriptor)
    elif path is None and variable not in os.environ:
        if values[f"{name}_is_master"]:
            raise click.UsageError(f"there is no master key: {option_names}, or {variable}")
        return None
    key = CustomerKey(
        path=path or "",
        variable="" if path or descriptor is not None else variable,
        descriptor=descriptor,
        is_master=values[f"{name}_is_master"],
    )
    key.read()
    return key


def absolute(path: str | None) -> str | None:
    """A path from the command line, with ``~`` and the current folder filled in; ``None`` for none."""
    return os.path.abspath(os.path.expanduser(path)) if path else None
