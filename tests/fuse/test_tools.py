"""Ordinary programs at their ordinary work, then the bucket is asked whether all of it arrived."""

from __future__ import annotations

import io
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.fuse.places import Place
from tests.fuse.trees import assert_bucket_holds, assert_same_tree, copy_library_tree, tree_of

SECOND_NS = 1_000_000_000


def run(
    *command: str | os.PathLike[str],
    cwd: Path | None = None,
    stdin: str | None = None,
    environment: dict[str, str] | None = None,
    timeout_s: float = 90,
) -> str:
    """Run a program that must succeed; what it printed."""
    ended = subprocess.run(
        [os.fspath(word) for word in command],
        cwd=cwd,
        input=stdin,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
    assert ended.stderr == "" or command[0] in ("git", "sqlite3", "dd"), ended.stderr
    return ended.stdout


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where one of the programs is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tree of about 2,000 files on the local disk, with some links and modes of its own."""
    tree = tmp_path_factory.mktemp("library")
    assert copy_library_tree(tree) > 500
    (tree / "link").symlink_to("abc.py")
    (tree / "dangling").symlink_to("nowhere/at all")
    (tree / "empty folder").mkdir(mode=0o700)
    (tree / "abc.py").chmod(0o600)
    (tree / "ast.py").chmod(0o755)
    os.utime(tree / "bdb.py", ns=(SECOND_NS, 1_111_111_111_123_456_789))
    return tree


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """Some thirty files in five folders, with links, modes and times."""
    tree = tmp_path / "tree"
    for number in range(30):
        file = tree / f"folder {number % 5}" / ("deep" if number % 2 else "") / f"file-{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"file {number}\n".encode() * number * 100)
        file.chmod((0o644, 0o755, 0o600)[number % 3])
        os.utime(file, ns=(1, 1_500_000_000 * SECOND_NS + number * 1_000_001))
    (tree / "link").symlink_to("folder 1/deep/file-1")
    (tree / "folder 0/dangling").symlink_to("nowhere")
    (tree / "empty").mkdir()
    (tree / "folder 2").chmod(0o2775)
    for number, path in enumerate([*sorted(tree.rglob("*"), reverse=True), tree]):
        if path.is_dir() or path.is_symlink():
            stamp = 1_600_000_000 * SECOND_NS + number * 1_000_001
            os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
    return tree


RSYNC_SENT = re.compile(r"^[<>ch.*][fdLDS]", re.MULTILINE)


def rsync(source: Path, target: Path) -> list[str]:
    """Synchronize with all attributes; the itemized changes."""
    shown = run("rsync", "-a", "--delete", "--itemize-changes", f"{source}/", f"{target}/")
    return [line for line in shown.splitlines() if RSYNC_SENT.match(line) or "deleting" in line]


@pytest.mark.timeout(240)
def test_cp_diff_and_rsync_of_a_real_tree(own_place: Place, library: Path) -> None:
    """2,000 files copied, compared, found in the bucket, and known to rsync, also on a fresh machine."""
    copy = own_place.path / "library"
    run("cp", "-a", library, copy)
    run("diff", "-r", "--no-dereference", library, copy)
    own_place.mount.wait(timeout_s=120)
    assert_bucket_holds(own_place.contents, "library/", tree_of(library))
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    if shutil.which("rsync"):
        assert rsync(library, copy) == []
    run("diff", "-r", "--no-dereference", library, copy)
    own_place.mount.wait()


@needs("rsync")
def test_rsync_sends_once(own_place: Place, small_tree: Path) -> None:
    """The second run sends nothing; after a change it sends that; on a fresh machine nothing."""
    there = own_place.path / "there"
    assert len(rsync(small_tree, there)) > 30
    assert rsync(small_tree, there) == []
    own_place.mount.wait()
    assert_bucket_holds(own_place.contents, "there/", tree_of(small_tree))
    (small_tree / "folder 1/deep/file-1").write_bytes(b"changed")
    (small_tree / "folder 0/file-10").unlink()
    os.utime(small_tree / "folder 0", ns=(1, 1_650_000_000 * SECOND_NS + 7))
    changes = rsync(small_tree, there)
    assert any(line.endswith("file-1") for line in changes)
    assert any("deleting" in line and "file-10" in line for line in changes)
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    assert rsync(small_tree, there) == []
    assert_same_tree(there, small_tree)


@needs("rsync")
def test_rsync_in_place_and_by_checksum(place: Place, small_tree: Path) -> None:
    """``--inplace``, ``--append`` and ``--checksum`` on files that are in S3 already."""
    there = place.path / "there"
    rsync(small_tree, there)
    place.mount.wait()
    growing = small_tree / "folder 4/deep/file-29"
    growing.write_bytes(growing.read_bytes() + b"grown" * 1000)
    run("rsync", "-a", "--inplace", f"{small_tree}/", f"{there}/")
    growing.write_bytes(growing.read_bytes() + b"again" * 1000)
    run("rsync", "-a", "--append", f"{small_tree}/", f"{there}/")
    assert (
        run("rsync", "-a", "--checksum", "--itemize-changes", f"{small_tree}/", f"{there}/") == ""
    )
    place.mount.wait()
    assert_bucket_holds(place.contents, f"{place.prefix}there/", tree_of(small_tree))


@needs("tar")
def test_tar_out_and_in(place: Place, small_tree: Path, tmp_path: Path) -> None:
    """An archive unpacked in the mount keeps modes, times and links; packed again it is the same."""
    archive = tmp_path / "archive.tar"
    run("tar", "--format=posix", "-cf", archive, "-C", small_tree, ".")
    there = place.path / "there"
    there.mkdir()
    run("tar", "-xpf", archive, "-C", there)
    assert_same_tree(there, small_tree)
    place.mount.wait()
    assert_bucket_holds(place.contents, f"{place.prefix}there/", tree_of(small_tree))
    run("tar", "--format=posix", "-cf", place.path / "again.tar", "-C", there, ".")
    run("tar", "-df", place.path / "again.tar", "-C", small_tree)
    place.mount.wait()
    with tarfile.open(fileobj=io.BytesIO(place.in_bucket("again.tar"))) as again:
        assert len(again.getmembers()) == len(tree_of(small_tree)) + 1


@pytest.fixture
def git_environment(tmp_path: Path) -> dict[str, str]:
    """An identity, and nothing of the machine's own configuration."""
    return {
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }


@needs("git")
def test_git(
    own_place: Place, small_tree: Path, git_environment: dict[str, str], tmp_path: Path
) -> None:
    """Clone, status, commit, branch, merge, gc, fsck; then a clone of what the bucket holds."""

    def git(*words: str | os.PathLike[str], cwd: Path) -> str:
        return run("git", *words, cwd=cwd, environment=git_environment)

    git("init", "-q", "-b", "main", cwd=small_tree)
    git("add", "-A", cwd=small_tree)
    git("commit", "-q", "-m", "one", cwd=small_tree)
    clone = own_place.path / "clone"
    git("clone", "-q", small_tree, clone, cwd=tmp_path)
    assert git("status", "--porcelain", cwd=clone) == ""
    (clone / "new file").write_bytes(b"new")
    (clone / "folder 1/deep/file-1").write_bytes(b"changed")
    assert sorted(git("status", "--porcelain", cwd=clone).splitlines()) == [
        ' M "folder 1/deep/file-1"',
        '?? "new file"',
    ]
    git("add", "-A", cwd=clone)
    git("commit", "-q", "-m", "two", cwd=clone)
    git("checkout", "-q", "-b", "branch", "HEAD~1", cwd=clone)
    (clone / "on branch").write_bytes(b"branch")
    git("add", "-A", cwd=clone)
    git("commit", "-q", "-m", "three", cwd=clone)
    git("merge", "-q", "-m", "merged", "main", cwd=clone)
    git("gc", "-q", cwd=clone)
    git("fsck", "--strict", cwd=clone)
    head = git("rev-parse", "HEAD", cwd=clone)
    git("clone", "-q", clone, own_place.path / "second", cwd=tmp_path)
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    assert git("status", "--porcelain", cwd=clone) == ""
    git("fsck", "--strict", cwd=own_place.path / "second")
    fetched = tmp_path / "fetched"
    for key in own_place.contents.listing("clone/.git/"):
        if key.endswith("/"):
            (fetched / key).mkdir(parents=True, exist_ok=True)
        else:
            (fetched / key).parent.mkdir(parents=True, exist_ok=True)
            (fetched / key).write_bytes(own_place.contents.read(key))
    git("fsck", "--strict", cwd=fetched / "clone")
    assert git("rev-parse", "HEAD", cwd=fetched / "clone") == head


def test_editor_writes_and_renames(place: Place) -> None:
    """As vim saves: the old file becomes the backup, the new one is written, synced, put in place."""
    file, backup = place.path / "notes.txt", place.path / "notes.txt~"
    file.write_bytes(b"version 0\n")
    file.chmod(0o640)
    for number in range(1, 6):
        file.rename(backup)
        with file.open("xb") as new:
            new.write(b"version %d\n" % number)
            new.flush()
            os.fsync(new.fileno())
        file.chmod(0o640)
        if number == 3:
            place.mount.wait()
        backup.unlink()
    temporary = place.path / ".notes.txt.tmp"
    with temporary.open("xb") as new:
        new.write(b"renamed over\n")
        new.flush()
        os.fsync(new.fileno())
    temporary.rename(file)
    folder = os.open(place.path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    assert place.keys_in_bucket() == {"notes.txt"}
    assert place.in_bucket("notes.txt") == b"renamed over\n"


@needs("vim.tiny")
@pytest.mark.parametrize("copying", ["yes", "no", "auto"])
def test_vim(place: Place, copying: str) -> None:
    """Two edits with swap file and kept backup, each way that vim makes backups."""
    file = place.path / "notes.txt"
    file.write_bytes(b"one\ntwo\n")
    place.mount.wait()
    for old, new in (("two", "2"), ("one", "1")):
        run(
            "vim.tiny", "-es", "-u", "NONE", "-i", "NONE",
            "-c", f"set backup backupskip= backupcopy={copying} swapfile", "-c", f"%s/{old}/{new}/",
            "-c", "wq", file, stdin="",
        )  # fmt: skip
    assert place.keys_in_bucket() == {"notes.txt", "notes.txt~"}
    assert place.in_bucket("notes.txt") == b"1\n2\n"
    assert place.in_bucket("notes.txt~") == b"one\n2\n"


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_sqlite(own_place: Place, journal: str, tmp_path: Path) -> None:
    """Create, insert, roll back, query by two connections; what the bucket holds passes its checks."""
    database = own_place.path / "data.db"
    one = sqlite3.connect(database, isolation_level=None)
    assert one.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal.lower()
    one.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, text TEXT)")
    one.execute("CREATE INDEX by_text ON kept (text)")
    for start in range(0, 500, 100):
        one.execute("BEGIN")
        rows = [(n, f"text {n * 7919 % 1000}") for n in range(start, start + 100)]
        one.executemany("INSERT INTO kept VALUES (?, ?)", rows)
        one.execute("COMMIT")
    one.execute("BEGIN")
    one.execute("DELETE FROM kept")
    one.execute("ROLLBACK")
    two = sqlite3.connect(database, isolation_level=None)
    assert two.execute("SELECT count(*) FROM kept").fetchone() == (500,)
    two.execute("UPDATE kept SET text = 'changed' WHERE number < 10")
    two.execute("DELETE FROM kept WHERE number >= 490")
    assert one.execute("SELECT count(*) FROM kept WHERE text='changed'").fetchone() == (10,)
    one.execute("VACUUM")
    two.close()
    one.close()
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    fetched = tmp_path / "fetched.db"
    fetched.write_bytes(own_place.contents.read("data.db"))
    for path in (fetched, database):
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*), sum(number) FROM kept").fetchone() == (
            490,
            sum(range(490)),
        )
        connection.close()


@needs("find", "du")
def test_find_and_du(place: Place, small_tree: Path, tmp_path: Path) -> None:
    """They report what they report of the original."""
    there = place.path / "there"
    run("cp", "-a", small_tree, there)
    for tests in (
        [],
        ["-type", "f", "-size", "+2k"],
        ["-type", "l"],
        ["-perm", "-0111"],
        ["-newermt", "2017-07-14 02:40:00.015 UTC"],
        ["-empty"],
    ):
        size = " %s" if "f" in tests else ""
        printed = ["-printf", f"%P %y %m %T@ %l{size}\\n"]
        seen = run("find", there, "-mindepth", "1", *tests, *printed)
        wanted = run("find", small_tree, "-mindepth", "1", *tests, *printed)
        assert sorted(seen.splitlines()) == sorted(wanted.splitlines())
    (tmp_path / "empty").mkdir()
    counts_folders = apparent_bytes(tmp_path / "empty") > 0  # not since coreutils 9.2
    sizes = []
    for folder in (there / "folder 1", small_tree / "folder 1"):
        own = sum(path.stat().st_size for path in (folder, *folder.rglob("*")) if path.is_dir())
        sizes.append(apparent_bytes(folder) - (own if counts_folders else 0))
    assert sizes[0] == sizes[1]


def apparent_bytes(folder: Path) -> int:
    return int(run("du", "-s", "--apparent-size", "-b", folder).split()[0])


@needs("mv", "cp", "rm")
def test_mv_cp_and_rm_of_folders(place: Place, small_tree: Path) -> None:
    """A folder half in S3 and half pending is moved; then copied inside the mount; then removed."""
    wanted = tree_of(small_tree)
    run("cp", "-a", small_tree, place.path / "first")
    place.mount.wait()
    run("cp", "-a", small_tree, place.path / "first/second")
    run("mv", place.path / "first", place.path / "moved")
    run("mv", place.path / "moved/second", place.path / "apart")
    assert_same_tree(place.path / "moved", small_tree)
    place.mount.wait()
    assert_bucket_holds(place.contents, f"{place.prefix}moved/", wanted)
    assert_bucket_holds(place.contents, f"{place.prefix}apart/", wanted)
    run("cp", "-a", place.path / "moved", place.path / "copied")
    assert_same_tree(place.path / "copied", small_tree)
    run("rm", "-r", place.path / "moved")
    run("rm", "-rf", place.path / "apart", place.path / "nothing")
    place.mount.wait()
    assert_bucket_holds(place.contents, f"{place.prefix}copied/", wanted)
    assert {key.split("/")[0] for key in place.keys_in_bucket()} == {"copied"}
    run("rm", "-r", place.path / "copied")
    assert place.keys_in_bucket() == set()


@needs("mv")
def test_mv_across_file_systems(place: Place, small_tree: Path, tmp_path: Path) -> None:
    """Into the mount and out again: nothing is lost on the way, nothing is left behind."""
    wanted = tree_of(small_tree)
    run("mv", small_tree, place.path / "there")
    assert not small_tree.exists()
    assert tree_of(place.path / "there") == wanted
    place.mount.wait()
    run("mv", place.path / "there", tmp_path / "back")
    assert tree_of(tmp_path / "back") == wanted
    assert place.keys_in_bucket() == set()


def test_small_tools(place: Place) -> None:
    """ln -s, mkfifo, install, touch, truncate, dd, sed -i, tee and the shell's own writing."""
    at = place.path
    script = """
    set -e
    echo one > log; echo two >> log; echo three | tee -a log > /dev/null
    ln -s log link; ln -sf elsewhere link
    mkfifo fifo
    install -m 750 -D /bin/true bin/deep/program
    touch -d '2001-02-03 04:05:06.789 UTC' log
    truncate -s 10000 sparse
    printf MIDDLE | dd of=sparse bs=1 seek=5000 conv=notrunc status=none
    printf 'a\\nb\\nc\\n' > edited
    sed -i.bak 's/b/changed/' edited
    mkdir -p x/y/z; rmdir -p x/y/z
    cp --reflink=auto edited copy; cp -u edited copy
    split -b 4 edited piece.; cat piece.* > joined; cmp edited joined; rm piece.*
    : > emptied; echo x > emptied; : > emptied
    (cd bin && pwd > /dev/null && deep/program)
    exec 3<>both; echo first >&3; echo second >&3; exec 3>&-
    """
    run("bash", "-c", script, cwd=at)
    held = {
        "edited": b"a\nchanged\nc\n",
        "edited.bak": b"a\nb\nc\n",
        "copy": b"a\nchanged\nc\n",
        "joined": b"a\nchanged\nc\n",
        "log": b"one\ntwo\nthree\n",
        "link": b"elsewhere",
        "fifo": b"",
        "sparse": bytes(5000) + b"MIDDLE" + bytes(4994),
        "emptied": b"",
        "both": b"first\nsecond\n",
        "bin/deep/program": Path("/bin/true").read_bytes(),
    }
    assert place.keys_in_bucket() == {*held, "bin/", "bin/deep/"}
    assert {name: place.contents.read(place.prefix + name) for name in held} == held
    assert (at / "log").stat().st_mtime_ns == 981_173_106_789_000_000
    assert stat.S_IMODE((at / "bin/deep/program").stat().st_mode) == 0o750


@needs("ls")
def test_ls_is_the_same_after_a_remount(own_place: Place, small_tree: Path) -> None:
    """``ls -lR`` with owners, modes, sizes, full times, from a fresh machine too."""
    run("cp", "-a", small_tree, own_place.path / "tree")

    def listed() -> list[str]:
        shown = run("ls", "-AlnR", "--time-style=full-iso", cwd=own_place.path)
        return [line for line in shown.splitlines() if not line.startswith("total ")]

    before = listed()
    own_place.mount.wait()
    assert listed() == before
    own_place.mount.remount(fresh_state=True, fresh_cache=True)
    assert listed() == before


def test_python_compiles_and_imports(place: Place) -> None:
    """Modules are written, compiled to ``__pycache__`` by write and rename, and imported again."""
    package = place.path / "package"
    package.mkdir()
    for number in range(20):
        (package / f"module{number}.py").write_text(f"VALUE = {number}\n")
    (package / "__init__.py").touch()
    script = "import importlib as i; print(sum(i.import_module(f'package.module{n}').VALUE for n in range(20)))"
    for _ in range(2):
        environment = {"PYTHONPATH": str(place.path), "PYTHONDONTWRITEBYTECODE": ""}
        shown = run(sys.executable, "-c", script, environment=environment)
        assert shown.strip() == "190"
    compiled = {key for key in place.keys_in_bucket() if key.endswith(".pyc")}
    assert len(compiled) == 21
    assert not [key for key in place.keys_in_bucket() if ".pyc." in key]


@needs("zip", "unzip")
def test_zip(place: Place, small_tree: Path) -> None:
    """Archives are written with seeks back and forth."""
    run("zip", "-qry", place.path / "a.zip", ".", cwd=small_tree)
    (place.path / "out").mkdir()
    run("unzip", "-q", place.path / "a.zip", "-d", place.path / "out")
    run("diff", "-r", "--no-dereference", small_tree, place.path / "out")
    place.mount.wait()


@pytest.fixture
def make_project(place: Place) -> Path:
    """A Makefile that builds one file from another."""
    project = place.path / "project"
    project.mkdir()
    (project / "Makefile").write_text("out: in\n\tcp in out\n\techo built >> log\n")
    (project / "in").write_text("source")
    return project


@needs("make")
def test_make_trusts_the_times(make_project: Path) -> None:
    """It builds once, and again after a change of the source."""
    run("make", "-s", cwd=make_project)
    run("make", "-s", cwd=make_project)
    assert (make_project / "log").read_text() == "built\n"
    (make_project / "in").write_text("changed")
    run("make", "-s", cwd=make_project)
    assert (make_project / "log").read_text() == "built\nbuilt\n"
    assert (make_project / "out").read_text() == "changed"
