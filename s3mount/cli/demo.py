"""``s3mount demo``: a first try on this machine alone, with the embedded S3 server."""

from __future__ import annotations

import click

from s3mount.errors import UsageError


@click.command("demo", short_help="Try it out with a server on this machine.")
@click.argument("mountpoint", required=False)
def demo(mountpoint: str | None) -> int:
    """Start a small S3 server here, make a bucket and mount it.

    With a MOUNTPOINT the bucket stays there until Ctrl-C; without, a walkthrough shows what a mount does and
    leaves nothing behind. Needs the extra: pip install 's3mount[demo]'.
    """
    try:
        from s3mount.demo import walkthrough
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("s3mount"):
            raise
        raise UsageError(
            f"the demo needs {error.name}, which is not installed: pip install 's3mount[demo]'"
        ) from None
    return walkthrough.run_walkthrough() if mountpoint is None else walkthrough.serve(mountpoint)
