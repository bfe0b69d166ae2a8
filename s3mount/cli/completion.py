"""``s3mount completion``: what a shell reads to complete commands, options, mounts and keys."""

from __future__ import annotations

import click

from s3mount.cli.completing import SHELLS, script


@click.command("completion", short_help="What a shell reads to complete s3mount.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print it: eval "$(s3mount completion bash)" lets a running shell have it.

    Keys are completed by one list of what was typed, for which S3 has two seconds.
    """
    click.echo(script(shell, ctx.find_root().command))
    return 0
