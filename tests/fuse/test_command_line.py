"""The commands as people and scripts use them, on a real mount of a real server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from s3mount import mountinfo
from s3mount.cli.mounts.mountoptions import FOR_KERNEL, FOR_OTHERS
from tests.mounting import mounted_at
from tests.namespaces import in_mount_namespace
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3

REPOSITORY = Path(__file__).parent.parent.parent


class Person:
    """Somebody at a shell, with a bucket, a mount point and folders of their own."""

    def __init__(self, server: S3Server, bucket: str, folder: Path) -> None:
        self.server = server
        self.bucket = bucket
        self.folder = folder
        self.path = folder / "mnt"
        self.path.mkdir()
        home = folder / "home"
        home.mkdir()
        inherited = {
            name: value
            for name, value in server.environment().items()
            if not name.startswith("S3MOUNT_")
        }
        self.environment = inherited | {
            "HOME": str(home),
            "S3MOUNT_RUN_DIR": str(folder / "run"),
            "S3MOUNT_ENDPOINT_URL": server.endpoint_url,
            "S3MOUNT_PATH_STYLE": "1",
        }
        self.client = server.boto3_client()

    def run(self, *arguments: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "s3mount", *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def does(self, *arguments: str) -> str:
        """Run a command that must work without complaint; what it printed."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        assert done.stderr == ""
        return done.stdout

    def mounts(self, *options: str) -> None:
        """Mount in the background, and wait until the store's abilities have been tried, after which
        uploads wait as they were told to."""
        self.does(self.bucket, "mnt", *options)
        until(lambda: json.loads(self.does("status", "mnt", "--json"))["store_honours"])

    def shell(self, script: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", script],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def entry(self) -> mountinfo.MountEntry:
        found = mountinfo.topmost_at(str(self.path), mountinfo.read_mounts())
        assert found is not None
        return found

    def keys(self) -> set[str]:
        """What the bucket holds, markers of folders left out."""
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {entry["Key"] for entry in listed if not entry["Key"].endswith("/")}

    def processes(self) -> list[psutil.Process]:
        """What was started here and still runs, the mount's process first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("S3MOUNT_RUN_DIR") == str(self.folder / "run"):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def leave(self) -> None:
        """Take everything away, however the test ended."""
        for process in self.processes():
            process.kill()
        if mounted_at(self.path):
            subprocess.run(["fusermount3", "-uz", str(self.path)], check=False, timeout=10)


@pytest.fixture
def person(s3_server: S3Server, bucket: str, tmp_path: Path) -> Iterator[Person]:
    found = Person(s3_server, bucket, tmp_path)
    yield found
    found.leave()


def until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_mount_use_wait_unmount(person: Person) -> None:
    assert person.does(person.bucket, "mnt") == f"{person.bucket} is mounted at {person.path}\n"
    (person.path / "one").write_text("first")
    (person.path / "two").write_text("second")
    person.does("wait", "mnt")
    assert person.keys() == {"one", "two"}
    (person.path / "three").write_text("third")
    assert "everything is in S3" in person.does("unmount", "mnt")
    assert person.keys() == {"one", "two", "three"}
    assert not mounted_at(person.path)
    assert person.processes() == []
    state = person.folder / "home/.local/state/s3mount"
    assert len(list(state.glob("*/log"))) == 1
    assert (person.folder / "home/.cache/s3mount").is_dir()


def test_a_relative_mount_point_means_the_same_later_from_elsewhere(person: Person) -> None:
    person.does("mount", f"s3://{person.bucket}", "./mnt/../mnt", "-q")
    assert f"{person.path}: s3://{person.bucket}" in person.does("status", str(person.path))
    person.does("unmount", f"{person.path}/")


def test_a_prefix_shows_a_part(person: Person) -> None:
    person.client.put_object(Bucket=person.bucket, Key="in/side", Body=b"1")
    person.client.put_object(Bucket=person.bucket, Key="outside", Body=b"2")
    person.does(f"s3://{person.bucket}/in", "mnt")
    until(lambda: os.listdir(person.path) == ["side"])
    (person.path / "new").write_text("x")
    person.does("unmount", "mnt")
    assert person.keys() == {"in/side", "outside", "in/new"}


def test_foreground_stays_logs_to_stderr_and_ends_by_ctrl_c(person: Person) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "s3mount", person.bucket, str(person.path), "-f"],
        env=person.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: mounted_at(person.path))
    (person.path / "file").write_text("x")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    assert f"{person.bucket} is mounted at {person.path}" in err
    assert "unmounted; everything is in S3" in err
    assert person.keys() == {"file"}


def test_status_of_all_of_one_and_of_a_file(person: Person) -> None:
    assert person.bucket not in person.run("status").stdout
    person.mounts("--upload-delay", "1h")
    (person.path / "folder").mkdir()
    (person.path / "folder/file").write_text("four")
    shown = json.loads(person.does("status", "mnt", "--json"))
    assert shown["mountpoint"] == str(person.path)
    assert shown["bucket"] == person.bucket
    assert shown["endpoint_url"] == person.server.endpoint_url
    assert shown["phase"] == "serving"
    assert shown["pending"]["changes"] >= 1
    assert shown["pending"]["bytes"] == 4
    assert "folder/file" in [change["key"] for change in shown["pending"]["list"]]
    assert shown["s3"]["requests"] > 0
    # Other mounts of this user may be in any state.
    assert (
        f"{person.path}: {person.bucket} (at {person.server.endpoint_url}"
        in person.run("status").stdout
    )
    assert "not in S3 yet" in person.does("status", "mnt")
    everything = json.loads(person.run("status", "--json").stdout)
    assert str(person.path) in [each["mountpoint"] for each in everything]
    one = json.loads(person.does("status", "mnt/folder/file", "--json"))
    assert (one["key"], one["size"], one["etag"]) == ("folder/file", 4, None)
    assert "folder/file" in person.does("status", "mnt/folder/file")
    person.does("wait", "mnt")
    etag = person.client.head_object(Bucket=person.bucket, Key="folder/file")["ETag"].strip('"')
    assert json.loads(person.does("status", "mnt/folder/file", "--json"))["etag"] == etag
    missing = person.run("status", "mnt/nothing")
    assert missing.returncode == 1
    assert missing.stderr.startswith("s3mount: ")
    assert "nothing" in missing.stderr
    person.does("unmount", "mnt")


def test_status_outside_of_mounts(person: Person) -> None:
    done = person.run("status", str(person.folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"s3mount: {person.folder} is not a mounted bucket, nor in one\n"


def test_wait_for_some_files(person: Person) -> None:
    person.mounts("--upload-delay", "1s")
    (person.path / "a").mkdir()
    for name in ("a/one", "a/two", "b"):
        (person.path / name).write_text(name)
    person.does("wait", "mnt", "a/one", "mnt/b", str(person.path / "a/two"))
    assert person.keys() == {"a/one", "a/two", "b"}
    outside = person.run("wait", "mnt", "/etc/passwd")
    assert outside.returncode == 2
    assert "is not in the mount" in outside.stderr
    person.does("unmount", "mnt")


def test_wait_gives_up_in_time(person: Person) -> None:
    person.does(person.bucket, "mnt")
    (person.path / "file").write_text("x")
    person.does("wait", "mnt")
    process = person.processes()[0]
    process.suspend()
    try:
        done = person.run("wait", "mnt", "--timeout", "1")
        assert done.returncode == 1
        assert "has not answered" in done.stderr
    finally:
        process.resume()
    person.does("unmount", "mnt")


@pytest.mark.parametrize(
    ("words", "expected", "unexpected"),
    [
        ((), {"nosuid", "nodev", "rw"}, {"noexec"}),
        (("-o", "ro,noexec"), {"nosuid", "nodev", "ro", "noexec"}, {"rw"}),
        (("-o", "suid,dev"), {"rw"}, {"nosuid", "nodev"}),
        (
            ("-o", "_netdev,noauto,user,nofail,x-systemd.automount,defaults"),
            {"nosuid", "nodev"},
            set(),
        ),
    ],
)
def test_what_the_kernel_is_told(
    person: Person, words: tuple[str, ...], expected: set[str], unexpected: set[str]
) -> None:
    person.does(person.bucket, "mnt", *words)
    entry = person.entry()
    assert entry.filesystem == "fuse.s3mount"
    assert entry.source == person.bucket
    assert expected <= set(entry.options)
    assert not unexpected & set(entry.options)
    assert "default_permissions" in entry.super_options
    person.does("unmount", "mnt")


def test_owner_and_modes_as_told(person: Person) -> None:
    person.client.put_object(Bucket=person.bucket, Key="folder/file", Body=b"1")
    person.does(person.bucket, "mnt", "-o", "uid=12,gid=34", "--file-mode", "640", "--dir-mode=710")
    # -f %a %u %g of both, by another process.
    shown = person.shell("stat -c '%a %u %g' mnt/folder mnt/folder/file").stdout.split("\n")
    assert shown[:2] == ["710 12 34", "640 12 34"]
    person.does("unmount", "mnt")


def test_a_key_for_sse_c_from_a_pipe(person: Person) -> None:
    """Which gives it once: the mount in the background has it, and the engine that follows on one that was killed."""
    key = os.urandom(32)
    program = f"{shlex.quote(sys.executable)} -m s3mount"
    words = f"{program} {person.bucket} mnt --sse-c-key-fd 0"
    done = person.shell(f"echo {base64.b64encode(key).decode()} | {words}")
    assert done.returncode == 0, done.stderr
    (person.path / "file").write_text("x")
    person.does("wait", "mnt")
    person.processes()[1].kill()
    (person.path / "second").write_text("y")
    person.does("wait", "mnt")
    for name, body in (("file", b"x"), ("second", b"y")):
        answer = person.client.get_object(
            Bucket=person.bucket, Key=name, SSECustomerAlgorithm="AES256", SSECustomerKey=key
        )
        assert answer["SSECustomerAlgorithm"] == "AES256"
        assert answer["Body"].read() == body
    person.does("unmount", "mnt")


@pytest.mark.parametrize("how", ["", "--foreground"])
def test_started_with_all_descriptors_closed(person: Person, how: str) -> None:
    """As by a wrapper of cron: the mount's pipes must not get their numbers."""
    command = f"{shlex.quote(sys.executable)} -m s3mount {person.bucket} mnt {how}"
    background = "&" if how else ""
    person.shell(f"exec 3>&1; {command} <&- >&- 2>&- 3>&- {background}", limit_s=30)
    until(lambda: mounted_at(person.path))
    (person.path / "file").write_text("x")
    person.does("unmount", "mnt")
    assert person.keys() == {"file"}


def test_what_is_kept_is_private_whatever_the_umask(person: Person) -> None:
    program = f"{shlex.quote(sys.executable)} -m s3mount"
    places = "--state-dir new/deep/state --cache-dir new/deep/cache"
    done = person.shell(f"umask 000; {program} {person.bucket} mnt {places}")
    assert (done.returncode, done.stderr) == (0, "")
    (person.path / "file").write_text("x")
    person.does("wait", "mnt")
    made = [person.folder / "new", *(person.folder / "new").rglob("*")]
    assert len(made) > 5
    open_to_others = {
        path: oct(path.stat().st_mode) for path in made if path.stat().st_mode & 0o077
    }
    assert not open_to_others
    person.does("unmount", "mnt")


def test_every_word_of_fstab_mounts(person: Person) -> None:
    words = sorted((FOR_OTHERS | FOR_KERNEL) - {"allow_root"})
    person.does(person.bucket, "mnt", "-o", ",".join(words))
    assert {"noexec", "noatime"} <= set(person.entry().options)
    person.does("unmount", "mnt")
    refused = person.run(person.bucket, "mnt", "-o", "remount,ro")
    assert refused.returncode == 2
    assert "unmount it, and mount it with the new options" in refused.stderr


def test_read_only_refuses_changes(person: Person) -> None:
    person.client.put_object(Bucket=person.bucket, Key="file", Body=b"1")
    person.does(person.bucket, "mnt", "--read-only")
    with pytest.raises(OSError, match="Read-only file system"):
        (person.path / "new").write_text("x")
    assert (person.path / "file").read_text() == "1"
    assert json.loads(person.does("status", "mnt", "--json"))["read_only"] is True
    person.does("unmount", "mnt")
    assert person.keys() == {"file"}


def test_variables_mirror_options(person: Person) -> None:
    person.environment |= {
        "S3MOUNT_READ_ONLY": "true",
        "S3MOUNT_STATE_DIR": str(person.folder / "st"),
    }
    person.does(person.bucket, "mnt")
    assert "ro" in person.entry().options
    assert list((person.folder / "st").glob("*/log"))
    person.environment["S3MOUNT_REED_ONLY"] = "1"
    done = person.run("unmount", "mnt")
    assert done.returncode == 0
    assert "S3MOUNT_REED_ONLY means nothing to s3mount" in done.stderr


def test_a_log_file_of_ones_own(person: Person) -> None:
    person.does(person.bucket, "mnt", "--log-file", "my.log", "--log-level", "debug")
    assert "is mounted at" in (person.folder / "my.log").read_text()
    person.does("unmount", "mnt")
    assert "everything is in S3" in (person.folder / "my.log").read_text()


def test_kernel_limits_are_raised_where_permitted(person: Person) -> None:
    person.does(person.bucket, "mnt")
    kernel = json.loads(person.does("status", "mnt", "--json"))["kernel"]
    readahead = mountinfo.sysfs_readahead(person.entry())
    if os.access(readahead, os.W_OK):
        assert kernel["read_ahead_kib"] == 1024
        assert int(readahead.read_text()) == 1024
    else:
        assert kernel["read_ahead_kib"] is None
    assert kernel["fast_loop"] is True
    person.does("unmount", "mnt")


def test_an_idle_mount_rests(person: Person) -> None:
    person.does(person.bucket, "mnt")
    (person.path / "file").write_text("x")
    person.does("wait", "mnt")
    family = person.processes()
    assert len(family) == 2, "the mount and its engine"
    time.sleep(1)
    before = sum(sum(each.cpu_times()[:2]) for each in family)
    time.sleep(4)
    used = sum(sum(each.cpu_times()[:2]) for each in family) - before
    assert used < 0.12, f"{used} s of CPU in 4 s"
    person.does("unmount", "mnt")


def test_pending_work_is_sent_by_the_next_mount_after_kill_9(person: Person) -> None:
    person.mounts("--upload-delay", "1h")
    (person.path / "kept").write_text("safe")
    person.processes()[0].kill()
    until(lambda: not person.processes())
    assert person.keys() == set()
    shown = person.run("status", "mnt")
    assert shown.returncode == 1
    assert "its process is gone" in shown.stdout
    assert person.run("unmount", "mnt").returncode == 1
    kept = json.loads(person.run("status", "--json").stdout)
    assert ("lost", person.bucket) in [(each["phase"], each["source"]) for each in kept]
    person.does(person.bucket, "mnt")
    person.does("wait", "mnt")
    assert person.keys() == {"kept"}
    person.does("unmount", "mnt")


# ------------------------------------------------------------------- mount(8)


def test_the_helper_takes_what_mount_gives_it(person: Person) -> None:
    helper = shlex.quote(str(REPOSITORY / "contrib/mount/mount.s3mount"))
    command = person.folder / "s3mount"
    command.write_text(
        f"#!/bin/sh\ncd {shlex.quote(str(REPOSITORY))}\n"
        f'exec {shlex.quote(sys.executable)} -m s3mount "$@"\n'
    )
    command.chmod(0o755)
    person.environment["S3MOUNT"] = str(command)
    del person.environment["HOME"]
    places = f"state_dir={person.folder}/st,cache_dir={person.folder}/ca"
    mount = f"{helper} {person.bucket} {person.path}"
    done = person.shell(f"{mount} -f -o nonsense")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    done = person.shell(f"{mount} -o rw,nonsense")
    assert done.returncode == 1
    assert "s3mount: -o nonsense: unknown option 'nonsense'" in done.stderr
    done = person.shell(f"{helper} no-such-bucket-here {person.path} -o {places}")
    assert done.returncode == 32
    assert "does not exist" in done.stderr
    done = person.shell(f"{mount} -s -n -v -t fuse.s3mount -o rw,nonsense,nodev,_netdev,{places}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "is mounted at" in done.stdout
    assert "nodev" in person.entry().options
    (person.path / "file").write_text("x")
    person.does("unmount", "mnt")
    assert person.keys() == {"file"}


@pytest.mark.parametrize("helper", ["mount.s3mount", "mount.fuse.s3mount", None])
def test_mount_8_itself(person: Person, helper: str | None) -> None:
    """With each name of the helper, and without any, through libfuse's mount.fuse.

    In a mount namespace whose /usr/sbin is an overlay, so that nothing is installed here.
    """
    if shutil.which("mount.fuse") is None:
        pytest.skip("libfuse's mount.fuse is not installed")
    made = person.folder / "sbin"
    for folder in (made, person.folder / "work"):
        folder.mkdir()
    command = (
        f"#!/bin/sh\ncd {shlex.quote(str(REPOSITORY))}\n"
        f'exec {shlex.quote(sys.executable)} -m s3mount "$@"\n'
    )
    (made / "s3mount").write_text(command)
    (made / "s3mount").chmod(0o755)
    if helper is not None:
        shutil.copy(REPOSITORY / "contrib/mount/mount.s3mount", made / helper)
    kind = "s3mount" if helper == "mount.s3mount" else "fuse.s3mount"
    places = f"state_dir={person.folder}/st,cache_dir={person.folder}/ca"
    script = f"""
        set -e
        mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir={made},workdir={person.folder}/work /usr/sbin
        mount -t {kind} {person.bucket} {person.path} -o _netdev,uid=7,{places}
        grep ' {person.path} ' /proc/self/mountinfo
        echo body > {person.path}/file
        stat -c %u {person.path}/file
        s3mount unmount {person.path} > /dev/null
        echo '{person.bucket} {person.path} {kind} noauto,nofail,_netdev,ro,{places} 0 0' > fstab
        mount -T fstab {person.path}
        grep ' {person.path} ' /proc/self/mountinfo
        cat {person.path}/file
        umount {person.path}
    """
    done = subprocess.run(
        [*in_mount_namespace(), "sh", "-c", script],
        env=person.environment,
        cwd=person.folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    first, owner, second, body = done.stdout.splitlines()
    for line, mode in ((first, "rw"), (second, "ro")):
        options = line.split(" ")[5].split(",")
        assert {"nosuid", "nodev", mode} <= set(options), line
        assert f"fuse.s3mount {person.bucket} " in line
    assert body == "body"
    assert owner == str(os.geteuid())
    until(lambda: not person.processes())
