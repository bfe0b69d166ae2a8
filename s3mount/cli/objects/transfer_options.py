"""The options of the commands that copy objects and files, and the values that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec
from click.core import ParameterSource

from s3mount.cli.objects.bulk import (
    F,
    dry_run_option,
    names_options,
    perf_option,
    report_options,
    selection_options,
)
from s3mount.cli.objects.object_options import new_objects, object_options
from s3mount.cli.options import customer_key, expert_option, option, store_options
from s3mount.cli.param_types import size
from s3mount.errors import PartSizeError, UsageError
from s3mount.refs import ObjectHeaders

if TYPE_CHECKING:
    from s3mount.bulk.copying import Chosen
    from s3mount.bulk.transfers import How
    from s3mount.config import StoreConfig

EXISTS = click.Choice(["overwrite", "skip", "fail"])
NOT_REPEATED = frozenset(
    (
        *("as_json", "quiet", "dry_run", "recursive", "include", "exclude", "exclude_from"),
        *("files_from", "files_from0", "raw", "no_follow_symlinks"),
        *("endpoint_url", "region", "profile", "no_sign_request", "path_style", "request_payer"),
        *("ca_bundle", "no_verify_ssl", "perf_log", "perf", "bwlimit", "background", "timeouts"),
        *("sse_c_key_file", "sse_c_key_fd", "sse_c_key_is_master"),
    )
)
"""Options that say which objects are meant, where S3 is, or how to tell of them: a line for one object needs none."""

_HEADERS = (
    click.option(
        "--metadata", multiple=True, metavar="NAME=VALUE", help="Metadata of its own; repeatable."
    ),
    click.option("--content-type", metavar="TYPE", help="[default: by the name's ending]"),
    click.option("--content-encoding", metavar="TEXT", help="Such as gzip."),
    click.option("--content-disposition", metavar="TEXT", help="Such as attachment."),
    click.option("--cache-control", metavar="TEXT", help="Such as max-age=3600."),
    click.option("--tagging", metavar="TAGS", help="Tags, as name=value&name=value."),
)
_HOW = (
    click.option("--version-id", metavar="ID", help="This version of the one source."),
    click.option(
        "--part-size",
        type=size,
        metavar="SIZE",
        default="8M",
        show_default=True,
        help="What is larger is sent in parts of this size; after 900 parts they double.",
    ),
    click.option(
        "--force", is_flag=True, help="Drop what is unfinished of earlier runs and tools."
    ),
    click.option(
        "--no-attributes", is_flag=True, help="Store and set neither permissions nor times."
    ),
)
_SOURCE = (
    click.option("--source-endpoint-url", metavar="URL", help="The sources' S3, if another."),
    click.option("--source-profile", metavar="NAME", help="Profile in ~/.aws for the sources."),
    click.option("--source-region", metavar="NAME", help="Region of the sources."),
    option(
        "--src-sse-c-key-file",
        type=click.Path(),
        metavar="FILE",
        help="The sources' key (SSE-C), if another.",
    ),
    expert_option(
        "--src-sse-c-key-fd", type=int, metavar="N", help="The same from an open descriptor."
    ),
    expert_option(
        "--src-sse-c-key-is-master", is_flag=True, help="It is a master key, as for s3am."
    ),
)
_TREE = (
    click.option("-r", "-R", "--recursive", is_flag=True, help="Folders too."),
    click.option("--no-follow-symlinks", is_flag=True, help="Leave out what links point to."),
)


def transfer_options(command: F) -> F:
    """All that copying takes beside its places."""
    return _added(command, (*_TREE, selection_options, names_options), (dry_run_option,))


def single_options(command: F) -> F:
    """The same for one file or object."""
    return _added(command, (), ())


def _added(command: F, first: tuple[Any, ...], last: tuple[Any, ...]) -> F:
    options = (*first, *_HOW, *_HEADERS, object_options, *_SOURCE, *last)
    for add in reversed((*options, report_options, perf_option, store_options)):
        command = add(command)
    return command


def new_objects_of(given: dict[str, Any]) -> ObjectHeaders:
    """``StoreConfig.new_objects``; the storage class goes with each object."""
    return msgspec.structs.replace(new_objects(given), storage_class=None)


def how_of(
    given: dict[str, Any],
    *,
    deletes_source: bool = False,
    is_strict: bool = False,
    exists: Literal["overwrite", "skip", "fail"] = "overwrite",
    file_exists: Literal["overwrite", "skip", "fail"] = "overwrite",
    source_slots: int = 16,
) -> How:
    """What the options say of each object. Raises PartSizeError, click.BadParameter."""
    from s3mount.bulk.transfers import How
    from s3mount.config import default_state_dir
    from s3mount.flow.parts import PartPlan
    from s3mount.transfer.upload import Resume

    try:
        plan = PartPlan(given["part_size"])
    except UsageError as error:
        raise PartSizeError(str(error)) from None
    return How(
        headers=ObjectHeaders(
            metadata=_metadata(given["metadata"]),
            content_type=given["content_type"],
            content_encoding=given["content_encoding"],
            content_disposition=given["content_disposition"],
            cache_control=given["cache_control"],
            storage_class=given["storage_class"],
            tags=given["tagging"],
        ),
        ledgers=default_state_dir() / "transfers",
        plan=plan,
        resume=Resume(given["force"], is_strict),
        resumes_downloads=not given["force"],
        keeps_attributes=not given["no_attributes"],
        deletes_source=deletes_source,
        names_version=given["version_id"] is not None,
        exists=exists,
        file_exists=file_exists,
        source_slots=source_slots,
    )


def _metadata(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for each in given:
        name, is_there, value = each.partition("=")
        if not name or not is_there:
            raise click.BadParameter(f"{each!r}: NAME=VALUE", param_hint="--metadata")
        # One character for each byte that travels.
        found[name.lower()] = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return found


def chosen_of(given: dict[str, Any]) -> Chosen:
    """Which of the sources is meant."""
    from s3mount.bulk.copying import Chosen
    from s3mount.cli.objects.bulk import given_names, path_filter

    return Chosen(
        recursive=given["recursive"],
        takes=path_filter(given),
        names=given_names(given),
        follows_links=not given["no_follow_symlinks"],
        version_id=given["version_id"],
    )


def source_config_of(given: dict[str, Any], config: StoreConfig) -> StoreConfig:
    """How the sources in S3 are asked: as the destination, but for what was said of them."""
    told: dict[str, object] = {
        "endpoint_url": given["source_endpoint_url"],
        "profile": given["source_profile"],
        "region": given["source_region"],
    }
    told["customer_key"] = customer_key(given, "src_sse_c_key")
    told = {name: value for name, value in told.items() if value is not None}
    return msgspec.structs.replace(config, new_objects=ObjectHeaders(), **told)


def words_of(ctx: click.Context) -> list[str]:
    """The options that a line for one object needs, so that ``run`` does the same."""
    words = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        is_given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not isinstance(parameter, click.Option) or not is_given or name in NOT_REPEATED:
            continue
        value = ctx.params[name]
        option = max(parameter.opts, key=len)
        if parameter.is_flag:
            words += [option] if value else []
        else:
            for each in value if parameter.multiple else (value,):
                words += [option, str(each)]
    return words
