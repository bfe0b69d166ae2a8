"""``s3mount doctor``: what keeps a mount from working here, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s3mount import logs
from s3mount.cli import output
from s3mount.cli.options import absolute, option, store_config, store_options
from s3mount.config import default_cache_dir, default_state_dir
from s3mount.names import normal_prefix

if TYPE_CHECKING:
    from s3mount.doctor.bucket import Tell
    from s3mount.doctor.findings import Finding


@click.command(
    "doctor",
    short_help="Find what keeps a mount from working.",
    epilog="Exit status: 0 no fault, 1 a fault was found, 2 wrong usage.",
)
@click.argument("bucket", required=False)
@click.argument("mountpoint", required=False)
@option("--prefix", default="", help="Look only below this prefix.")
@option("--read-only", is_flag=True, help="Write nothing to the bucket.")
@option("--cache-dir", type=click.Path(), help="Where a mount would keep what was read.")
@option("--state-dir", type=click.Path(), help="Where a mount would keep what is not in S3 yet.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each check.")
@store_options
def doctor(bucket: str | None, mountpoint: str | None, **given: Any) -> int:
    """Check this machine, and BUCKET if it is named, for what a mount needs: a line for each check.

    Each right is tried, below a temporary key that is removed again.
    """
    from s3mount.doctor.machine import look_at_machine

    faults = 0

    def tell(finding: Finding) -> None:
        nonlocal faults
        faults += finding.level == "fault"
        if given["as_json"]:
            output.write_json(finding)
        else:
            _write(finding)
        output.flush()

    state_dir = Path(absolute(given["state_dir"]) or default_state_dir())
    cache_dir = Path(absolute(given["cache_dir"]) or default_cache_dir())
    for finding in look_at_machine(mountpoint, state_dir, cache_dir):
        tell(finding)
    if bucket is not None:
        _look_at_bucket(bucket, given, tell)
    return 1 if faults else 0


def _look_at_bucket(bucket: str, given: dict[str, Any], tell: Tell) -> None:
    from s3mount import tasks
    from s3mount.doctor.bucket import look_at_bucket
    from s3mount.engine.client import EngineClient

    name, _, below = bucket.removeprefix("s3://").partition("/")
    prefix = normal_prefix(given["prefix"] or below)
    config = store_config(given, name)
    # What the requests would log on their way is told by the findings.
    logs.to_terminal("error")

    async def main() -> None:
        await look_at_bucket(config, prefix, EngineClient, tell, may_write=not given["read_only"])

    tasks.run(main)


def _write(finding: Finding) -> None:
    word = "FAULT" if finding.level == "fault" else finding.level
    output.write_line(f"{word:8} {finding.check:22} {finding.found}")
    if finding.advice:
        output.write_line(f"{'':8} {'':22} -> {finding.advice}")
