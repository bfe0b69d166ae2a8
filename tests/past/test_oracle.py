"""The past as checkout, verify and mounts show it against what its writer knows, after random histories.

S3MOUNT_TEST_PAST_ROUNDS, _STEPS and _SEED (one, or FIRST-LAST) make it longer or another.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Mount
from tests.past.history import KEYS, Commands, History, Version, damaging, files_below, wrong_files
from tests.servers.faulty import Fate

ROUNDS = int(os.environ.get("S3MOUNT_TEST_PAST_ROUNDS", "2"))
STEPS = int(os.environ.get("S3MOUNT_TEST_PAST_STEPS", "16"))

pytestmark = [
    pytest.mark.each_server,
    pytest.mark.timeout(300 + 150 * ROUNDS),
    pytest.mark.filterwarnings("always::tests.past.history.StoreContradictsItself"),
]


def test_checkout_verify_and_mount_show_what_the_writer_knows(
    history: History, commands: Commands, tmp_path: Path, mount_factory: Callable[..., Mount]
) -> None:
    folder = tmp_path / "folder"
    older: list[Version] = []
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
        if number:
            assert_older_manifest_is_exact_or_fails(history, commands, older, tmp_path / "older")
        older = list(wanted.values())


def assert_older_manifest_is_exact_or_fails(
    history: History, commands: Commands, older: list[Version], folder: Path
) -> None:
    """Every version that is still there is checked out, and every other one is named: nothing in its place."""
    there = {(v.key, v.version_id, v.etag) for v in history.alive()}
    kept = [v for v in older if (v.key, v.version_id, v.etag) in there]
    gone = {v.key for v in older if v not in kept}
    made = history.write_manifest(folder.with_suffix(".csv"), older)
    done = commands("checkout", made, folder, "--json")
    assert done.status == (1 if gone else 0), done.stderr
    assert {failure["key"] for failure in done.told["failures"]} == gone
    assert files_below(folder) == {v.key: v.body for v in kept}
    shutil.rmtree(folder, ignore_errors=True)
    verified = commands("manifest", "verify", "--content", "--json", made)
    assert verified.status == (1 if gone else 0), verified.stderr
    assert {line["key"] for line in verified.lines[:-1] if "problem" in line} == gone


@pytest.mark.parametrize("fate", [Fate.SPOIL_RECEIVING, Fate.CUT])
def test_bytes_that_change_on_every_way_are_never_right(
    history: History, commands: Commands, tmp_path: Path, fate: Fate
) -> None:
    """Neither in a folder nor for verify, nor later: wrong, or not proven; every one is named and the rest goes on."""
    if fate is Fate.CUT and history.server.name != "localstack":
        pytest.skip("what breaks off does so alike everywhere, and is tried for long")
    versions = [history.put_random(key) for key in KEYS]
    whole = [version for version in versions if version.body]
    empty = [history.put("empty", b"")]
    made = history.write_manifest(tmp_path / "m.csv", [*versions, *empty])
    folder = tmp_path / "folder"
    with damaging(commands, history.bucket, fate):
        # What breaks off is tried for long, so once is enough.
        runs = 1 if fate is Fate.CUT else 2
        told = [commands("checkout", made, folder, "--json") for _ in range(runs)]
        verified = commands("manifest", "verify", "--content", "--json", made)
    for done in told:
        assert done.status == 1, done.stderr
        named = {failure["key"] for failure in done.told["failures"]}
        assert named | set(done.told["unproven_paths"]) == {version.key for version in whole}
        assert done.told["stopped"] == ""
    unproven = set(told[-1].told["unproven_paths"])
    assert set(wrong_files(folder, versions + empty)) <= unproven
    assert unproven <= ({"parts/usual", "parts/odd"} if history.server.name == "ceph" else set())
    *lines, summary = verified.lines
    assert (verified.status, summary["stopped"]) == (1, "")
    assert {line["key"] for line in lines} == {version.key for version in whole}
    assert {line["key"] for line in lines if "unproven" in line} <= unproven
    assert (summary["checked"], summary["unread"] > 0) == (len(versions) + 1, fate is Fate.CUT)
    # Later, without what damaged them, nothing is believed of it.
    done = commands("checkout", made, folder, "--json")
    assert (done.status, wrong_files(folder, versions + empty)) == (0, []), done.stderr
    assert files_below(folder).keys() == {version.key for version in versions + empty}
    unknown = {"parts/odd"} if history.server.name == "ceph" else set()
    assert set(done.told["unproven_paths"]) == unknown
    done = commands("checkout", made, folder, "--json")
    assert (done.told["downloaded"], done.told["unproven"]) == (len(unknown), len(unknown))


def test_a_mount_hands_out_no_small_file_that_was_damaged_on_its_way(
    history: History, commands: Commands, tmp_path: Path, mount_factory: Callable[..., Mount]
) -> None:
    """A small object comes whole and is held to its checksum or MD5; of a range of a larger one S3 tells none."""
    small = [history.put_random(key) for key in KEYS if key[0] in "abz"]
    made = history.write_manifest(tmp_path / "m.csv", small)
    with damaging(commands, history.bucket) as relay:
        mount = mount_factory(str(made), endpoint_url=relay.url)
        for version in small:
            if version.body:
                with pytest.raises(OSError, match="Input/output error"):
                    (mount.path / version.key).read_bytes()
        relay.decide = lambda request: None
        assert files_below(mount.path) == {version.key: version.body for version in small}
