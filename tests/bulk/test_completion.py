"""Keys and buckets are completed in a real shell, as S3 lists them."""

from __future__ import annotations

import subprocess
import sys

from tests.bulk.places import COMMAND_TIMEOUT_S, Places


def completed(places: Places, *words: str) -> list[str]:
    """What bash completes: its function, called as bash calls it."""
    program = places.folder / "bin" / "s3mount"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m s3mount "$@"\n')
    program.chmod(0o755)
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
        eval "$(s3mount completion bash)"
        COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}
        _s3mount_completion s3mount 2>/dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = places.environment() | {
        "S3MOUNT_ENDPOINT_URL": places.server.endpoint_url,
        "S3MOUNT_PATH_STYLE": "1",
    }
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_keys_and_buckets(places: Places) -> None:
    places.put("data/one", "data/two", "dated", "other")
    top = f"s3://{places.bucket}"
    assert completed(places, "s3mount", "ls", top[:-2]) == [f"{top}/"]
    assert completed(places, "s3mount", "cp", f"{top}/da") == [f"{top}/data/", f"{top}/dated"]
    assert completed(places, "s3mount", "rm", f"{top}/data/t") == [f"{top}/data/two"]
    assert completed(places, "s3mount", "cat", f"{top}/none") == []
