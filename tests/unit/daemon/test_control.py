"""The control socket: server and client together, the client in a thread as in its own process."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from s3mount.daemon import protocol, registry, server
from s3mount.daemon.client import ControlClient, Refused, wait_ended
from s3mount.daemon.protocol import Done, Ended, Failed, Flushed, Leave, Progress, Status, Wait
from s3mount.daemon.registry import MountRecord
from s3mount.errors import MountError, S3MountError

R = TypeVar("R")
LONG = "a-folder-name-that-is-longer-than-any-socket-address-may-be/" * 3


class Pretended:
    """A mount whose pending changes are set by the test."""

    def __init__(self) -> None:
        self.left = 0
        self.refused = ""
        self.stopped = False
        self.rates = (0, 0)
        self.level = "info"
        self.steering = None
        self.waited_for: list[tuple[str, ...]] = []

    async def snapshot(self) -> dict[str, Any]:
        return {"mountpoint": "/mnt/x", "pending": {"changes": self.left}}

    async def snapshot_of(self, path: str) -> dict[str, Any]:
        if path == "broken":
            raise ZeroDivisionError("a bug")
        if path == "missing":
            raise MountError("missing: no such file in the mount")
        return {"path": path}

    async def wait_uploaded(self, paths: Sequence[str] = ()) -> None:
        self.waited_for.append(tuple(paths))
        while self.left:
            if self.refused:
                raise S3MountError(self.refused)
            await trio.sleep(0.01)

    async def retry(self, paths: Sequence[str], *, overwrite: bool) -> list[str]:
        if "nothing" in paths:
            raise S3MountError("nothing at nothing waits for another try")
        return [f"{path} overwrite={overwrite}" for path in paths]

    async def refresh(self, paths: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        self.rates = (up_bytes_per_s, down_bytes_per_s)

    async def set_log_level(self, level: str) -> None:
        self.level = level

    async def discard(self, paths: Sequence[str], *, is_rehearsal: bool) -> list[str]:
        return [f"{path} rehearsal={is_rehearsal}" for path in paths]

    def pending(self) -> tuple[int, int]:
        return self.left, 10 * self.left

    def trouble(self) -> str:
        return "'a': refused" if self.left else ""

    async def moved(self) -> float:
        return 0.0

    async def end_where_taken_away(self) -> None:
        await trio.lowlevel.checkpoint()

    def stop_draining(self) -> None:
        self.stopped = True


class Control:
    """A running server and how to talk to it."""

    def __init__(self, folder: Path, mount: Pretended, running: server.ControlServer) -> None:
        self.folder = folder
        self.mount = mount
        self.server = running
        self.record = MountRecord(
            mountpoint="/mnt/x",
            source="data",
            pid=os.getpid(),
            started_ticks=registry.process_start_ticks(os.getpid()) or 0,
            state_dir="",
            log_path="",
            version="",
        )

    @property
    def path(self) -> Path:
        return self.folder / registry.socket_name("/mnt/x")

    async def talk(self, conversation: Callable[[ControlClient], R]) -> R:
        def run() -> R:
            with ControlClient(self.folder, self.record) as client:
                return conversation(client)

        return await trio.to_thread.run_sync(run)


@asynccontextmanager
async def control(folder: Path) -> AsyncIterator[Control]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = Pretended()
    running = server.ControlServer(mount, mount)
    found = Control(folder, mount, running)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run, lambda: found.path, lambda path: None)
        yield found
        nursery.cancel_scope.cancel()
    assert not found.path.exists()


async def _status(folder: Path) -> None:
    async with control(folder) as found:
        found.mount.left = 3
        told = await found.talk(lambda client: client.ask(Status()))
        assert told == {"mountpoint": "/mnt/x", "pending": {"changes": 3}}
        assert await found.talk(lambda client: client.ask(protocol.StatusOf("a/b"))) == {
            "path": "a/b"
        }
        await found.talk(lambda client: client.ask(protocol.Stop()))
        assert found.mount.stopped


def test_status_is_told(tmp_path: Path) -> None:
    trio.run(_status, tmp_path)


def test_a_deep_run_folder_is_no_trouble(tmp_path: Path) -> None:
    trio.run(_status, tmp_path / LONG)


async def _others_may_not_connect(folder: Path) -> None:
    async with control(folder) as found:
        assert found.path.stat().st_mode & 0o777 == 0o600


def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    trio.run(_others_may_not_connect, tmp_path)


async def _waits(folder: Path) -> list[protocol.Answer]:
    async with control(folder) as found:
        found.mount.left = 2

        def conversation(client: ControlClient) -> list[protocol.Answer]:
            client.send(Wait(("a", "b")))
            answers = []
            for answer in client.answers(5):
                answers.append(answer)
                found.mount.left = 0
            return answers

        answers = await found.talk(conversation)
        assert found.mount.waited_for == [("a", "b")]
        return answers


def test_waiting_tells_how_far_it_is(tmp_path: Path) -> None:
    answers = trio.run(_waits, tmp_path)
    assert answers[0] == Progress(2, 20, 0.0, "'a': refused")
    assert answers[-1] == Done()


async def _refused(folder: Path) -> None:
    async with control(folder) as found:
        found.mount.left, found.mount.refused = 1, "S3 refuses 'a'"
        with pytest.raises(Refused, match="S3 refuses 'a'"):
            await found.talk(lambda client: client.ask(Wait()))
        with pytest.raises(Refused, match="no such file"):
            await found.talk(lambda client: client.ask(protocol.StatusOf("missing")))


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    trio.run(_refused, tmp_path)


async def _leaves(folder: Path, *, refused: str) -> list[protocol.Answer]:
    async with control(folder) as found:
        found.mount.left, found.mount.refused = (1, refused) if refused else (0, "")

        def conversation(client: ControlClient) -> list[protocol.Answer]:
            client.send(Leave())
            answers: list[protocol.Answer] = []
            for answer in client.answers(5):
                if isinstance(answer, Progress):
                    continue
                answers.append(answer)
                if isinstance(answer, Flushed | Failed):
                    trio.from_thread.run(found.server.end, found.mount.left, 10)
            return answers

        return await found.talk(conversation)


@pytest.mark.parametrize("refused", ["", "S3 refuses 'a'"])
def test_who_leaves_hears_when_to_unmount_and_what_stays(tmp_path: Path, refused: str) -> None:
    answers = trio.run(lambda: _leaves(tmp_path, refused=refused))
    assert answers == [Failed(refused) if refused else Flushed(), Ended(1 if refused else 0, 10)]


async def _hangs_up(folder: Path) -> None:
    async with control(folder) as found:
        found.mount.left = 1

        def conversation(client: ControlClient) -> None:
            client.send(Wait())
            next(client.answers(5))

        await found.talk(conversation)
        found.mount.left = 0
        await found.talk(lambda client: client.ask(Status()))


def test_who_hangs_up_does_no_harm(tmp_path: Path) -> None:
    trio.run(_hangs_up, tmp_path)


async def _nonsense(folder: Path) -> list[protocol.Answer]:
    async with control(folder) as found:

        def conversation() -> list[protocol.Answer]:
            answers = []
            for line in (b'{"type":"dance"}\n', b"\xff\xfe\n", b"[]\n"):
                with socket.socket(socket.AF_UNIX) as plain:
                    plain.settimeout(5)
                    plain.connect(str(found.path))
                    plain.sendall(line)
                    answers.append(protocol.decode_answer(plain.makefile("rb").readline()))
            with socket.socket(socket.AF_UNIX) as plain:
                plain.connect(str(found.path))
            return answers

        answers = await trio.to_thread.run_sync(conversation)
        await found.talk(lambda client: client.ask(Status()))
        return answers


def test_nonsense_is_answered_and_survived(tmp_path: Path) -> None:
    answers = trio.run(_nonsense, tmp_path)
    assert all(isinstance(answer, Failed) for answer in answers)


async def _survives_a_bug(folder: Path) -> None:
    async with control(folder) as found:
        with pytest.raises(MountError, match="hung up without an answer"):
            await found.talk(lambda client: client.ask(protocol.StatusOf("broken")))
        await found.talk(lambda client: client.ask(Status()))


def test_a_bug_behind_one_request_is_logged_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trio.run(_survives_a_bug, tmp_path)
    assert "a command's connection failed" in caplog.text


async def _moves(folder: Path) -> None:
    folder.mkdir()
    mount = Pretended()
    running = server.ControlServer(mount, mount)
    places = iter((folder / "one.sock", folder / "two.sock"))
    published: list[Path] = []
    again = trio.Event()

    def publish(path: Path) -> None:
        published.append(path)
        if len(published) == 2:
            again.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(running.run, lambda: next(places), publish)
        (folder / "one.sock").unlink()
        with trio.fail_after(5):
            await again.wait()
        assert (folder / "two.sock").exists()
        nursery.cancel_scope.cancel()


def test_a_socket_that_was_taken_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOOK_EVERY_S", 0.05)
    trio.run(_moves, tmp_path / "run")


def test_nobody_listening_is_said(tmp_path: Path) -> None:
    record = MountRecord(
        mountpoint="/mnt/x",
        source="data",
        pid=1,
        started_ticks=0,
        state_dir="",
        log_path="",
        version="",
    )
    with pytest.raises(MountError, match=r"the process of /mnt/x \(pid 1\) does not listen"):
        ControlClient(tmp_path, record)
    assert wait_ended(record, 1.0)


async def _silent(folder: Path) -> None:
    async with control(folder) as found:
        found.mount.left = 1

        def conversation(client: ControlClient) -> None:
            client.ask(Status(), timeout_s=0.2)

        async def never() -> dict[str, Any]:
            await trio.sleep_forever()
            raise AssertionError

        found.mount.snapshot = never  # type: ignore[method-assign]
        with pytest.raises(MountError, match=r"has not answered for 0\.2 s"):
            await found.talk(conversation)


def test_silence_has_a_deadline(tmp_path: Path) -> None:
    trio.run(_silent, tmp_path)
