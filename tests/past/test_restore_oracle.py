"""Restore and diff against what the writer of random histories knows; S3MOUNT_TEST_PAST_... as in test_oracle.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from s3mount.app import manifests
from s3mount.cli.commands import main
from tests.contract.subjects import set_credentials
from tests.manifest_access import open_in_this_process
from tests.past.history import History, Version

ROUNDS = int(os.environ.get("S3MOUNT_TEST_PAST_ROUNDS", "2"))
STEPS = int(os.environ.get("S3MOUNT_TEST_PAST_STEPS", "25"))

pytestmark = [
    pytest.mark.each_server,
    pytest.mark.timeout(300 + 150 * ROUNDS),
    pytest.mark.filterwarnings("always::tests.past.history.StoreContradictsItself"),
]

Run = Callable[..., tuple[int, str, str]]
"""Runs ``s3mount manifest``; exit status, what it wrote, and what it said."""


@pytest.fixture
def run(
    history: History, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    set_credentials(monkeypatch, history.server)
    monkeypatch.setattr(manifests.Access, "open_store", open_in_this_process)

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        where = ("--endpoint-url", history.server.endpoint_url, "--path-style")
        status = main(["manifest", *map(str, words), *where])
        return (status, *capsys.readouterr())

    return run


def without_versions(history: History, path: Path, versions: Iterable[Version]) -> Path:
    """A manifest by hand: keys with sizes and ETags."""
    entries = [msgspec.structs.replace(history.entry(v), version_id=None) for v in versions]
    lines = [f'"{e.bucket}","{e.key}",{e.size},{e.etag}\n' for e in entries]
    path.write_text("bucket,key,size,etag\n" + "".join(lines))
    return path


def restored(history: History, then: dict[str, Version], *, by_etag: bool) -> dict[str, bytes]:
    """The bucket as a restore to ``then`` has to leave it, by its versions; a key whose bytes are gone stays."""
    wanted = {}
    for key, live in history.now().items():
        if key in then:
            wanted[key] = live.body or b""
    for key, version in then.items():
        alive = [v for v in history.versions.get(key, []) if v.body is not None]
        same = [
            v
            for v in alive
            if v.etag == version.etag and len(v.body or b"") == len(version.body or b"")
        ]
        exact = [v for v in same if v.version_id == version.version_id]
        if same if by_etag else exact:
            wanted[key] = version.body or b""
    return wanted


def kinds(then: dict[str, Version], now: dict[str, Version]) -> dict[str, str]:
    """How the two differ, key by key."""
    found = dict.fromkeys(then.keys() - now.keys(), "removed")
    found |= dict.fromkeys(now.keys() - then.keys(), "added")
    for key in then.keys() & now.keys():
        one, other = then[key], now[key]
        if (one.version_id, one.etag) != (other.version_id, other.etag):
            found[key] = "changed"
    return found


def test_restore_and_diff_do_what_the_writer_knows(
    history: History, run: Run, tmp_path: Path
) -> None:
    for number in range(ROUNDS):
        by_etag = number % 2 == 1
        history.play(STEPS)
        then = history.now()
        listed = tmp_path / f"{number}.csv"
        assert run("create", history.bucket, "-o", listed)[0] == 0
        history.play(STEPS)
        live = history.now()
        status, out, err = run("diff", "--json", listed, f"s3://{history.bucket}")
        lines = [json.loads(line) for line in out.splitlines()]
        assert {line["key"]: line["kind"] for line in lines[:-1]} == kinds(then, live), err
        assert status == (1 if kinds(then, live) else 0)
        history.versioning(enabled=True)
        expected = restored(history, then, by_etag=by_etag)
        missing = {key for key, version in then.items() if expected.get(key) != version.body}
        if not then:
            continue
        made, more = listed, ["--delete"]
        if by_etag:
            made = without_versions(history, tmp_path / "by-etag.csv", then.values())
            more = ["--delete", "--prefix", ""]
        before = {(v.key, v.version_id) for v in history.alive()}
        status, out, err = run("restore", made, "--yes", "--json", *more)
        told = json.loads(out)
        history.learn()
        assert {key: v.body for key, v in history.now().items()} == expected, err
        assert (status, told["failed"]) == (1 if missing else 0, 0), err
        assert told["plan"]["missing"] == len(missing)
        assert all(f"{key}: " in err for key in missing)
        assert before <= {(v.key, v.version_id) for v in history.alive()}, "nothing is destroyed"
        # Nothing is left to do, but where the store proves nothing of what was sent in parts.
        status, out, _ = run("restore", made, "--yes", "--json", *more)
        again = json.loads(out)
        assert (again["plan"]["delete"], again["plan"]["copy"]) == (0, 0)
        assert again["copied"] <= sum(key.startswith("parts/") for key in then)
        history.learn()
