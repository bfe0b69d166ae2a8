"""Snapshot mounts: a manifest, or a bucket as it was, on a real mount and real servers."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from s3mount.vfs.snapshots.snapshots_dir import SNAPSHOTS_MAX
from tests.conftest import own_bucket
from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import status_of, status_of_file
from tests.fuse.pasts import Writer, contents, write_manifest, write_old_manifest
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Answer, Relay, Request

pytestmark = [pytest.mark.needs_s3, pytest.mark.each_server]
MIB = 1 << 20

Make = Callable[..., Mount]


@pytest.fixture
def writer(s3_server: S3Server, versioned_bucket: str) -> Writer:
    """Somebody who writes to a bucket that keeps versions."""
    return Writer(s3_server, versioned_bucket)


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with Relay(s3_server.endpoint_url) as running:
        yield running


def bodies(writer: Writer) -> dict[str, bytes]:
    return {key: version.body for key, version in writer.current.items() if not key.endswith("/")}


def raises(number: int, do: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  the number is looked at
        do()
    assert caught.value.errno == number, caught.value


def test_a_time_shows_what_was_there(mount_factory: Make, writer: Writer) -> None:
    large = os.urandom(3 * MIB)
    for key, body in (("a", b"one"), ("dir/b", b"two"), ("dir/sub/large", large), ("gone/c", b"c")):
        writer.put(key, body)
    writer.put("was deleted", b"x")
    writer.delete("was deleted")
    then = bodies(writer)
    moment = writer.moment()
    writer.put("a", b"written later")
    writer.delete("gone/c")
    writer.put("later/d", b"later")
    writer.put("was deleted", b"and written again")
    mount = mount_factory(writer.bucket, "--at", moment)
    assert contents(mount.path) == then
    assert sorted(os.listdir(mount.path)) == ["a", "dir", "gone"]
    told = status_of(mount)
    assert told["past"]["at"] == moment
    assert told["missing"]["files"] == 0
    assert status_of_file(mount, "dir/b")["version_id"] == writer.current["dir/b"].version_id
    assert mount.command("wait", str(mount.path)).returncode == 0
    # Nothing of it was ever to be sent.
    assert mount.command("unmount", str(mount.path)).stdout == f"{mount.path} is unmounted\n"
    assert mount.log.endswith("unmounted\n")


def test_below_a_prefix(mount_factory: Make, writer: Writer) -> None:
    writer.put("some/where/a", b"one")
    writer.put("some/b", b"two")
    moment = writer.moment()
    writer.delete("some/where/a")
    mount = mount_factory(f"s3://{writer.bucket}/some/where", "--at", moment)
    assert contents(mount.path) == {"a": b"one"}


def test_a_manifest_shows_its_versions(mount_factory: Make, writer: Writer, tmp_path: Path) -> None:
    named = [writer.put("a", b"one"), writer.put("dir/b", b"two"), writer.put("é/ü x", b"three")]
    named.append(writer.put("dir/empty", b""))
    for version in named:
        writer.put(version.key, b"written later")
    writer.put("not named", b"x")
    mount = mount_factory(str(write_manifest(tmp_path / "manifest.csv", named)))
    assert contents(mount.path) == {each.key: each.body for each in named}
    told = status_of(mount)["past"]
    assert (told["files"], told["bytes"]) == (4, 11)


def test_a_manifest_in_s3(mount_factory: Make, writer: Writer, tmp_path: Path) -> None:
    named = [writer.put("a", b"one"), writer.put("dir/b", b"two")]
    path = write_manifest(tmp_path / "manifest", named)
    writer.put("manifests/of today.csv", path.read_bytes())
    mount = mount_factory(f"s3://{writer.bucket}/manifests/of today.csv")
    assert contents(mount.path) == {each.key: each.body for each in named}
    mount.unmount()


def test_what_cannot_be_mounted_is_told_in_one_line(
    mount_factory: Make, writer: Writer, tmp_path: Path
) -> None:
    mount = mount_factory(writer.bucket, mounted=False)
    place = ("--endpoint-url", mount.endpoint_url, "--path-style")
    broken = tmp_path / "broken.csv"
    broken.write_text("bucket,key,version_id,size\nb,k,v,many\n")
    for source, options, words in (
        (str(broken), (), "broken.csv"),
        (f"s3://{writer.bucket}/missing.csv", (), "missing.csv"),
        (f"{writer.bucket}-missing", ("--at", "2026-10-01"), "bucket"),
    ):
        done = mount.command("mount", source, str(mount.path), *options, *place)
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not mount.mounted


def test_several_buckets(mount_factory: Make, s3_server: S3Server, tmp_path: Path) -> None:
    writers = []
    buckets = [own_bucket(s3_server, versioned=True) for _ in range(5)]
    try:
        named = []
        for number, bucket in enumerate(buckets):
            writers.append(Writer(s3_server, next(bucket)))
            named.append(writers[-1].put(f"dir/{number}", b"%d" % number))
            writers[-1].put(f"dir/{number}", b"later")
        mount = mount_factory(str(write_manifest(tmp_path / "manifest.csv", named)))
        assert sorted(os.listdir(mount.path)) == sorted(each.bucket for each in named)
        assert contents(mount.path) == {f"{each.bucket}/{each.key}": each.body for each in named}
        # Fewer engines than buckets, and all can still be read.
        assert contents(mount.path) == {f"{each.bucket}/{each.key}": each.body for each in named}
        mount.unmount()
    finally:
        for bucket in buckets:
            next(bucket, None)


@pytest.fixture(params=["manifest", "time"])
def frozen(
    request: pytest.FixtureRequest, mount_factory: Make, writer: Writer, tmp_path: Path
) -> Mount:
    """A snapshot mount with a file, a folder and a link in it."""
    writer.put("file", b"content")
    writer.put("dir/file", b"content")
    if request.param == "time":
        return mount_factory(writer.bucket, "--at", writer.moment(), "--xattr")
    path = write_manifest(tmp_path / "manifest.csv", writer.current.values())
    return mount_factory(str(path), "--xattr")


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda top: (top / "file").open("r+b"),
    "append": lambda top: (top / "file").open("ab"),
    "truncate": lambda top: os.truncate(top / "file", 0),
    "create": lambda top: (top / "new").open("wb"),
    "mkdir": lambda top: (top / "new").mkdir(),
    "mknod": lambda top: os.mknod(top / "new", 0o644 | stat.S_IFIFO),
    "symlink": lambda top: (top / "new").symlink_to("file"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "rename": lambda top: (top / "file").rename(top / "new"),
    "rename over": lambda top: (top / "file").rename(top / "dir" / "file"),
    "unlink": lambda top: (top / "file").unlink(),
    "rmdir": lambda top: (top / "dir").rmdir(),
    "chmod": lambda top: (top / "file").chmod(0o600),
    "chown": lambda top: os.chown(top / "file", 1, 1),
    "utime": lambda top: os.utime(top / "file", (1, 1)),
    "setxattr": lambda top: os.setxattr(top / "file", "user.x", b"y"),
    "removexattr": lambda top: os.removexattr(top / "file", "user.x"),
    "access": lambda top: _must_be_writable(top / "file"),
}


def _must_be_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise OSError(errno.EROFS, "not writable")


def test_nothing_can_be_changed(frozen: Mount) -> None:
    before = contents(frozen.path)
    for do in CHANGES.values():
        raises(errno.EROFS, lambda do=do: do(frozen.path))  # type: ignore[misc]
    assert contents(frozen.path) == before
    assert os.getxattr(frozen.path / "file", "s3mount.version_id")


def test_a_destroyed_version_is_an_error_that_names_it(
    mount_factory: Make, writer: Writer, tmp_path: Path
) -> None:
    named = [writer.put("small", b"old"), writer.put("large", os.urandom(3 * MIB))]
    named.append(writer.put("kept", b"kept"))
    for version in named:
        writer.put(version.key, version.body[::-1])
    mount = mount_factory(str(write_manifest(tmp_path / "manifest.csv", named)))
    for version in named[:2]:
        writer.destroy(version)
        raises(errno.EIO, (mount.path / version.key).read_bytes)
    assert (mount.path / "kept").read_bytes() == b"kept"
    missing = status_of(mount)["missing"]
    assert missing["files"] == 2
    for version, told in zip(named, missing["list"], strict=False):
        assert told["path"] == f"s3://{version.bucket}/{version.key}"
        assert told["version_id"] == version.version_id
        assert version.version_id in mount.log
    shown = mount.command("status", str(mount.path)).stdout
    assert "2 files cannot be read" in shown
    assert named[0].version_id in shown


def test_a_forbidden_version_is_an_error_until_it_is_allowed(
    mount_factory: Make, writer: Writer, relay: Relay, tmp_path: Path
) -> None:
    named = [writer.put("secret", b"old"), writer.put("open", b"open")]
    writer.put("secret", b"new")
    path = write_manifest(tmp_path / "manifest.csv", named)
    mount = mount_factory(str(path), endpoint_url=relay.url)

    def decide(request: Request) -> Answer | None:
        return Answer(403, "AccessDenied") if request.path.endswith("/secret") else None

    relay.decide = decide
    raises(errno.EIO, (mount.path / "secret").read_bytes)
    assert (mount.path / "open").read_bytes() == b"open"
    assert status_of(mount)["missing"]["list"][0]["path"].endswith("/secret")
    relay.decide = lambda request: None
    assert (mount.path / "secret").read_bytes() == b"old"
    assert status_of(mount)["missing"]["files"] == 0


def test_a_null_version_that_was_overwritten_is_not_taken_for_the_old_one(
    mount_factory: Make, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    writer = Writer(s3_server, bucket)
    named = [writer.put("a", b"one"), writer.put("b", b"two")]
    mount = mount_factory(str(write_manifest(tmp_path / "manifest.csv", named)))
    writer.put("a", b"ONE")
    raises(errno.EIO, (mount.path / "a").read_bytes)
    assert (mount.path / "b").read_bytes() == b"two"
    assert status_of(mount)["missing"]["files"] == 1


def test_a_second_mount_asks_for_nothing(
    mount_factory: Make, writer: Writer, relay: Relay, tmp_path: Path
) -> None:
    named = [writer.put(f"{n % 3}/{n}", b"%d" % n) for n in range(30)]
    path = write_old_manifest(tmp_path / "manifest.csv", named)
    mount = mount_factory(str(path), "--bucket", writer.bucket, endpoint_url=relay.url)
    assert relay.requests() == []
    numbers = {}
    for each in named:
        found = (mount.path / each.key).stat()
        assert found.st_size == len(each.body)
        numbers[each.key] = found.st_ino
    # Sizes were asked for once each, in batches.
    assert len(relay.requests("HEAD")) == len(named)
    assert {each.method for each in relay.requests()} == {"HEAD"}
    (catalog,) = (mount.cache_dir / "catalogs").glob("manifest-*.sqlite")
    made = catalog.stat().st_ino
    relay.forget()
    mount.remount()
    assert len(list(mount.path.rglob("*"))) == 33
    for each in named:
        found = (mount.path / each.key).stat()
        assert (found.st_size, found.st_ino) == (len(each.body), numbers[each.key])
    assert relay.requests() == []
    assert catalog.stat().st_ino == made
    assert (mount.path / named[4].key).read_bytes() == named[4].body
    (asked,) = relay.requests()
    assert (asked.method, f"versionId={named[4].version_id}" in asked.query) == ("GET", True)
    # The cache has it now, and the kernel too.
    relay.forget()
    assert (mount.path / named[4].key).read_bytes() == named[4].body
    assert relay.requests() == []


def test_a_time_is_listed_once(mount_factory: Make, writer: Writer, relay: Relay) -> None:
    for number in range(20):
        writer.put(f"{number % 4}/{number}", b"x")
    moment = writer.moment()
    mount = mount_factory(writer.bucket, "--at", moment, endpoint_url=relay.url)

    def listed() -> int:
        # Whether old versions are destroyed by a rule is asked beside it.
        return sum("lifecycle" not in request.query for request in relay.requests())

    assert len(list(mount.path.rglob("*"))) == 24
    assert listed() == 1
    assert not (mount.path / "0" / "missing").exists()
    assert not (mount.path / "missing").exists()
    assert listed() == 1


def test_a_folder_of_many_names(mount_factory: Make, writer: Writer, tmp_path: Path) -> None:
    version = writer.put("one", b"x")
    named = [version._replace(key=f"many/{number:05d}") for number in range(5000)]
    mount = mount_factory(str(write_manifest(tmp_path / "manifest.csv", named)))
    expected = sorted(each.key.rpartition("/")[2] for each in named)
    assert sorted(os.listdir(mount.path / "many")) == expected
    with os.scandir(mount.path / "many") as entries:
        assert len({entry.inode() for entry in entries}) == 5000
    descriptor = os.open(mount.path / "many", os.O_RDONLY)
    try:
        # Twice by the same descriptor: it is wound back between.
        assert sorted(os.listdir(descriptor)) == expected
        assert sorted(os.listdir(descriptor)) == expected
    finally:
        os.close(descriptor)


def test_stored_attributes_and_links(mount_factory: Make, writer: Writer, tmp_path: Path) -> None:
    live = mount_factory(writer.bucket)
    folder = live.path / "dir"
    folder.mkdir(mode=0o750)
    for number in range(5):
        (folder / f"{number}").write_bytes(b"x" * number)
        (folder / f"{number}").chmod(0o640 + number)
        os.utime(folder / f"{number}", ns=(1, 10**18 + number))
    (folder / "link").symlink_to("4")
    live.wait()
    moment = writer.moment()
    (folder / "0").chmod(0o600)
    (folder / "link").unlink()
    live.unmount()
    past = mount_factory(writer.bucket, "--at", moment)
    for number in range(5):
        found = (past.path / "dir" / f"{number}").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o640 + number, number)
        assert found.st_mtime_ns == 10**18 + number
    assert os.readlink(past.path / "dir" / "link") == "4"
    assert (past.path / "dir" / "link").read_bytes() == b"xxxx"
    assert stat.S_IMODE((past.path / "dir").stat().st_mode) == 0o750


# ------------------------------------------------------------------ below a live mount


def test_pasts_below_a_live_mount(mount_factory: Make, writer: Writer) -> None:
    writer.put("a", b"one")
    put = writer.put("dir/b", b"two")
    first, then = writer.moment(), bodies(writer)
    writer.put("a", b"changed")
    writer.delete("dir/b")
    second, later = writer.moment(), bodies(writer)
    mount = mount_factory(writer.bucket, "--snapshots")
    (mount.path / "a").write_bytes(b"written here")
    pasts = mount.path / ".snapshots"
    assert ".snapshots" not in os.listdir(mount.path)
    assert os.listdir(pasts) == []
    assert contents(pasts / first) == then
    assert contents(pasts / second) == later
    assert sorted(os.listdir(pasts)) == sorted([first, second])
    assert (mount.path / "a").read_bytes() == b"written here"
    for name in ("yesterday", "2999-01-01", "-3d", "2026-10-01T00:00"):
        raises(errno.ENOENT, (pasts / name).stat)
    told = status_of(mount)
    assert told["snapshots"] == sorted([first, second])
    one = status_of_file(mount, f".snapshots/{first}/dir/b")
    assert (one["path"], one["key"], one["size"]) == (f".snapshots/{first}/dir/b", "dir/b", 3)
    assert one["version_id"] == put.version_id
    assert status_of_file(mount, ".snapshots")["mode"] == "0o40555"
    mount.unmount()


@pytest.mark.timeout(240)
def test_more_times_than_may_be_open_at_once(mount_factory: Make, writer: Writer) -> None:
    writer.put("a", b"one")
    moment = writer.moment()
    now = datetime.fromisoformat(moment)
    mount = mount_factory(writer.bucket, "--snapshots")
    pasts = mount.path / ".snapshots"
    inside = pasts / moment
    with (inside / "a").open("rb") as held:
        for minutes in range(2 * SNAPSHOTS_MAX):
            past = pasts / f"{now - timedelta(minutes=minutes + 1):%Y-%m-%dT%H:%M:%SZ}"
            assert os.listdir(past) == []
        assert held.read() == b"one"
    assert contents(inside) == {"a": b"one"}
    assert len(status_of(mount)["snapshots"]) <= SNAPSHOTS_MAX
    mount.unmount()


def test_keys_below_the_folder_of_the_past_stay_hidden(mount_factory: Make, writer: Writer) -> None:
    writer.put(".snapshots/real", b"real")
    writer.put("a", b"one")
    moment, then = writer.moment(), bodies(writer)
    mount = mount_factory(writer.bucket, "--snapshots", "--metadata-ttl", "0")
    seen = set()
    for _ in range(3):
        assert os.listdir(mount.path) == ["a"]
        seen.add((mount.path / ".snapshots").stat().st_ino)
        raises(errno.ENOENT, (mount.path / ".snapshots" / "real").stat)
        raises(errno.EROFS, lambda: (mount.path / ".snapshots" / "new").write_bytes(b""))
    assert len(seen) == 1
    assert contents(mount.path / ".snapshots" / moment) == then
    assert any("'.snapshots/' are not shown" in note for note in status_of(mount)["notes"])
    mount.unmount()
    mount.options = ["--snapshots=past"]
    mount.mount()
    assert (mount.path / ".snapshots" / "real").read_bytes() == b"real"
    (mount.path / ".snapshots" / "new").write_bytes(b"new")
    assert contents(mount.path / "past" / moment) == then
    assert status_of(mount)["notes"] == []
    mount.unmount()


def test_a_lifecycle_rule_for_old_versions_is_told(mount_factory: Make, writer: Writer) -> None:
    writer.put("a", b"one")
    writer.put("a", b"two")
    moment = writer.moment()
    rule = {
        "ID": "tidy",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 7},
    }
    writer.client.put_bucket_lifecycle_configuration(
        Bucket=writer.bucket, LifecycleConfiguration={"Rules": [rule]}
    )
    mount = mount_factory(writer.bucket, "--at", moment)
    told = "the lifecycle rule 'tidy' destroys versions 7 days after they were replaced"
    wait_until(lambda: bool(status_of(mount)["notes"]), "the rule is told")
    assert status_of(mount)["notes"][0].startswith(told)
    mount.unmount()
    options = ("--endpoint-url", mount.endpoint_url, "--path-style")
    made = mount.command("manifest", "create", writer.bucket, "--at", moment, *options)
    assert told in made.stderr
    assert len(made.stdout.splitlines()) == 2


def test_what_is_below_snapshots_cannot_be_changed(mount_factory: Make, writer: Writer) -> None:
    writer.put("file", b"content")
    writer.put("dir/file", b"content")
    moment = writer.moment()
    mount = mount_factory(writer.bucket, "--snapshots", "--xattr")
    pasts = mount.path / ".snapshots"
    before = contents(pasts / moment)
    for name, do in CHANGES.items():
        if name != "access":
            raises(errno.EROFS, lambda do=do: do(pasts / moment))  # type: ignore[misc]
    raises(errno.EROFS, (pasts / "new").mkdir)
    raises(errno.EROFS, pasts.rmdir)
    raises(errno.EROFS, lambda: pasts.rename(mount.path / "new"))
    raises(errno.EROFS, lambda: (pasts / moment / "file").rename(mount.path / "taken"))
    raises(errno.EROFS, lambda: (mount.path / "file").rename(pasts / moment / "new"))
    assert contents(pasts / moment) == before
    # Taking something out is a copy, into the live bucket.
    (mount.path / "copy").write_bytes((pasts / moment / "file").read_bytes())
    mount.unmount()
    assert writer.client.get_object(Bucket=writer.bucket, Key="copy")["Body"].read() == b"content"


def test_a_destroyed_version_below_snapshots(mount_factory: Make, writer: Writer) -> None:
    old = writer.put("a", b"one")
    moment = writer.moment()
    writer.put("a", b"two")
    mount = mount_factory(writer.bucket, "--snapshots")
    past = mount.path / ".snapshots" / moment
    assert past.joinpath("a").stat().st_size == 3
    writer.destroy(old)
    raises(errno.EIO, (past / "a").read_bytes)
    assert (mount.path / "a").read_bytes() == b"two"
    (told,) = status_of(mount)["missing"]["list"]
    assert (told["version_id"], moment in told["path"]) == (old.version_id, True)
