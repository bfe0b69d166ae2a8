"""The past as checkout, verify and mounts show it against what its writer knows, after random histories.

S3MOUNT_TEST_PAST_ROUNDS, _STEPS and _SEED make it longer or another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Mount
from tests.past.history import Commands, History, files_below

ROUNDS = int(os.environ.get("S3MOUNT_TEST_PAST_ROUNDS", "2"))
STEPS = int(os.environ.get("S3MOUNT_TEST_PAST_STEPS", "25"))

pytestmark = [pytest.mark.timeout(120 + 60 * ROUNDS)]


def test_checkout_verify_and_mount_show_what_the_writer_knows(
    history: History, commands: Commands, tmp_path: Path, mount_factory: Callable[..., Mount]
) -> None:
    folder = tmp_path / "folder"
    for number in range(ROUNDS):
        history.play(STEPS)
        history.assert_is_the_stores()
        wanted = history.now()
        bodies = {key: version.body for key, version in wanted.items()}
        made = tmp_path / f"{number}.csv"
        assert commands("manifest", "create", history.bucket, "-o", made).status == 0
        # The same bytes as the writer's own, up to times, which only the store knows.
        same = history.write_manifest(tmp_path / "same.csv", wanted.values())
        assert commands("manifest", "diff", "--content", made, same).status == 0
        done = commands("checkout", made, folder, "--delete")
        assert (done.status, files_below(folder)) == (0, bodies), done.stderr
        assert commands("manifest", "verify", "--content", made).status == 0
        mount = mount_factory(str(made))
        assert files_below(mount.path) == bodies
        mount.unmount()
