"""``s3mount send`` and the daemon, on real servers."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.daemon.daemons import Daemon, wait_until

MIB = 1 << 20
KILLS = int(os.environ.get("S3MOUNT_CRASH_DAEMON_KILLS", "4"))
STEPS = (
    *("blob: created", "journal: before commit", "journal: committed", "spool: recorded"),
    *("fsync: blob forced", "fsync: journal forced", "send: before", "put: answered"),
    *("part: sent", "complete: answered", "change: finished", "recovery: change taken over"),
)
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
NOWHERE = "http://127.0.0.1:9"


def test_files_folders_and_standard_input_arrive(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start()
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "a file").write_bytes(b"one")
    (tree / "below" / "two").write_bytes(b"two")
    (tmp_path / "large").write_bytes(random.Random(1).randbytes(20 * MIB))
    daemon.run("send", "-r", "tree", "large", "{b}/in/")
    daemon.run("send", "-", "{b}/piped", stdin=b"from a pipe" * 100_000)
    assert daemon.keys() == ["in/large", "in/tree/a file", "in/tree/below/two", "piped"]
    assert daemon.body("in/large") == (tmp_path / "large").read_bytes()
    assert daemon.body("piped") == b"from a pipe" * 100_000
    assert daemon.stop() == 0


def test_what_is_enqueued_is_a_copy_and_outlives_the_daemon(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(endpoint_url=NOWHERE)
    (tmp_path / "it").write_bytes(b"as it was")
    done = daemon.run("send", "--enqueue", "--delete-after", "--json", "it", "{b}/it")
    assert json.loads(done.stdout.splitlines()[0])["success"]
    assert not (tmp_path / "it").exists()
    daemon.kill()
    daemon.run("export", _state_dir(daemon), "out")
    assert (tmp_path / "out" / "it").read_bytes() == b"as it was"


def test_a_reference_is_sent_as_it_was_or_not_at_all(daemon: Daemon, tmp_path: Path) -> None:
    stays, changes = tmp_path / "stays", tmp_path / "changes"
    stays.write_bytes(b"s" * 2 * MIB)
    changes.write_bytes(b"c" * 2 * MIB)
    stays.chmod(0o400)
    daemon.start(endpoint_url=NOWHERE)
    daemon.run("send", "--enqueue", "--by-reference", "stays", "changes", "{b}/")
    daemon.kill()
    changes.write_bytes(b"C" * 2 * MIB)
    _point_at(daemon, daemon.server.endpoint_url)
    daemon.start()
    wait_until(lambda: daemon.keys() == ["stays"])
    assert daemon.body("stays") == stays.read_bytes()
    wait_until(lambda: "handed over by reference" in _status(daemon))
    daemon.run("discard", "{b}", "changes", "--yes")
    assert "everything is in S3" in _status(daemon)
    assert changes.read_bytes() == b"C" * 2 * MIB
    assert stays.exists()
    assert daemon.keys() == ["stays"]


def test_the_commands_of_a_mount_serve_it(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(endpoint_url=NOWHERE)
    (tmp_path / "it").write_bytes(b"it")
    daemon.run("send", "--enqueue", "it", "{b}/some/key")
    assert "1 change (2 B)" in _status(daemon)
    assert (
        b"not in S3 yet" in daemon.run("wait", "{b}/some/key", "--timeout", "1s", status=1).stderr
    )
    daemon.run("export", "{b}", "out")
    assert (tmp_path / "out" / "some" / "key").read_bytes() == b"it"
    assert b"is no mount" in daemon.run("unmount", "{b}", status=1).stderr
    daemon.kill()
    _point_at(daemon, daemon.server.endpoint_url)
    daemon.start()
    daemon.run("wait", "{b}")
    assert daemon.body("some/key") == b"it"
    assert daemon.stop() == 0
    assert b"no daemon" in daemon.run("status", "{b}", status=1).stderr


def test_what_s3_refuses_is_told_and_kept(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start()
    (tmp_path / "it").write_bytes(b"it")
    nowhere = f"s3://{daemon.bucket}-is-not-there/it"
    said = daemon.run("send", "it", nowhere, status=1).stderr
    assert b"NoSuchBucket" in said or b"bucket" in said
    assert b"it is kept, and tried again" in said
    daemon.run("discard", nowhere, ".", "--yes")
    assert daemon.run("send", "--quiet", "it", "{b}/it").stderr == b""
    assert daemon.stop() == 0


def test_a_bucket_with_nothing_to_do_has_no_process(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start("--idle-after", "1s")
    for body in (b"one", b"two"):
        (tmp_path / "it").write_bytes(body)
        daemon.run("send", "it", "{b}/it")
        assert daemon.body("it") == body
        wait_until(lambda: not psutil.Process(daemon.pid).children())
    assert b"no daemon" in daemon.run("status", "{b}", status=1).stderr
    assert daemon.stop() == 0


def test_what_was_taken_of_a_sender_that_is_killed_stays(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(endpoint_url=NOWHERE)
    for number in range(30):
        (tmp_path / f"in{number:02}").write_bytes(b"it")
    names = [f"in{number:02}" for number in range(30)]
    sender = subprocess.Popen(
        daemon.argv("send", *names, "{b}/"), env=daemon.environment(), cwd=tmp_path
    )
    wait_until(lambda: len(_blobs(daemon)) == 30)
    sender.kill()
    sender.wait(10)
    assert "30 changes" in _status(daemon)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as rude:
        rude.connect(str(daemon.socket))
        rude.recv(1000)
        rude.send(b"no request")
        assert b"does not know this request" in rude.recv(1000)
        assert rude.recv(1000) == b""
    assert "30 changes" in _status(daemon)


def test_a_pipe_whose_sender_was_killed_is_not_taken(daemon: Daemon) -> None:
    daemon.start()
    sender = subprocess.Popen(
        daemon.argv("send", "-", "{b}/half"),
        env=daemon.environment(),
        stdin=subprocess.PIPE,
    )
    assert sender.stdin is not None
    sender.stdin.write(b"half of it")
    sender.stdin.flush()
    wait_until(lambda: any(each.stat().st_size for each in _blobs(daemon)))
    sender.send_signal(signal.SIGKILL)
    sender.wait(10)
    sender.stdin.close()
    wait_until(lambda: not _blobs(daemon))
    assert daemon.keys() == []


def test_what_came_before_it_started_waits_in_the_socket_of_systemd(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "passed.sock"
    (tmp_path / "it").write_bytes(b"it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        sender = subprocess.Popen(
            daemon.argv("send", "--socket", str(path), "it", "{b}/it"),
            env=daemon.environment(),
            cwd=tmp_path,
        )
        where = ("--endpoint-url", daemon.server.endpoint_url, "--path-style")
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                AS_SYSTEMD,
                str(listener.fileno()),
                *daemon.argv("daemon", *where),
            ],
            env=daemon.environment(),
            pass_fds=[listener.fileno()],
        )
        try:
            assert sender.wait(40) == 0
        finally:
            process.terminate()
            process.wait(40)
    assert daemon.keys() == ["it"]
    assert path.exists()


@pytest.mark.parametrize("size", [10, 18 * MIB])
def test_what_s3_had_when_the_daemon_was_killed_is_no_second_version(
    versioned_daemon: Daemon, tmp_path: Path, size: int
) -> None:
    daemon = versioned_daemon
    step = "put: answered" if size == 10 else "complete: answered"
    daemon.start(environment={"S3MOUNT_CRASH_AT": step})
    (tmp_path / "it").write_bytes(random.Random(size).randbytes(size))
    daemon.run("send", "--enqueue", "it", "{b}/it")
    wait_until(lambda: f"killed at the step '{step}'" in daemon.log)
    daemon.kill()
    daemon.start()
    daemon.run("wait", "{b}")
    assert daemon.versions() == ["it"]


@pytest.mark.timeout(200 + 25 * KILLS)
def test_killed_again_and_again_it_loses_nothing_and_sends_nothing_twice(
    versioned_daemon: Daemon, tmp_path: Path
) -> None:
    daemon = versioned_daemon
    rng = random.Random(7)
    bodies: dict[str, bytes] = {}
    for number in range(KILLS):
        folder = tmp_path / f"in{number}"
        folder.mkdir()
        for each in range(40):
            size = rng.choice((0, 10, 5_000, 300_000, 2 * MIB))
            (folder / f"{number}-{each}").write_bytes(rng.randbytes(size))
        (folder / f"{number}-large").write_bytes(rng.randbytes(18 * MIB))
        # Some die at a named step, if they come to it, the others at a random time.
        step = f"{rng.choice(STEPS)}:{rng.randrange(1, 30)}" if rng.random() < 0.6 else ""
        daemon.start(environment={"S3MOUNT_CRASH_AT": step}, may_die=bool(step))
        sender = subprocess.Popen(
            daemon.argv(
                "send", "--enqueue", "--json", "--delete-after", "-r", f"{folder}/", "{b}/"
            ),
            env=daemon.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        kept = {each.name: each.read_bytes() for each in folder.iterdir()}
        assert sender.stdout is not None
        told: list[str] = []
        until = rng.randrange(1, 42)
        for line in sender.stdout:
            answer = json.loads(line)
            if "operation" in answer and answer["success"]:
                told.append(answer["destination"].rpartition("/")[2])
            if not step and len(told) == until:
                break
        daemon.kill()
        told += [
            each["destination"].rpartition("/")[2]
            for each in map(json.loads, sender.stdout)
            if "operation" in each and each["success"]
        ]
        sender.stdout.close()
        sender.wait(30)
        bodies |= {name: kept[name] for name in told}
        if number % 10 == 9:
            # What is pending grows from kill to kill.
            daemon.start()
            daemon.run("wait", "{b}", timeout_s=300)
            daemon.kill()
    daemon.start()
    daemon.run("wait", "{b}", timeout_s=300)
    assert daemon.stop() == 0
    counted = Counter(daemon.versions())
    assert bodies.keys() <= counted.keys()
    assert {key for key, count in counted.items() if count > 1} == set()
    for name, body in bodies.items():
        assert daemon.body(name) == body, name


def _status(daemon: Daemon) -> str:
    return daemon.run("status", "{b}").stdout.decode()


def _state_dir(daemon: Daemon) -> str:
    found = list((daemon.folder / ".state" / "s3mount").glob("daemon-*"))
    assert len(found) == 1
    return str(found[0])


def _blobs(daemon: Daemon) -> list[Path]:
    return list((daemon.folder / ".state" / "s3mount").glob("daemon-*/blobs/*"))


def _point_at(daemon: Daemon, endpoint_url: str) -> None:
    """Let the settings that lie beside what is pending name another server."""
    path = Path(_state_dir(daemon)) / "mount.json"
    told = json.loads(path.read_text())
    told["store"]["endpoint_url"] = endpoint_url
    path.write_text(json.dumps(told))
