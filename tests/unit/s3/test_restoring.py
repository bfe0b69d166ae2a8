"""What is asked of an archive, what it tells, and how ``s3mount restore --wait`` waits for it."""

from __future__ import annotations

from typing import Any, cast
from xml.etree import ElementTree

import msgspec
import pytest
import trio
import trio.testing

from s3mount.bulk.location import S3Location
from s3mount.bulk.report import Report
from s3mount.cli.mounts.restore import AT_ONCE, LOOK_EVERY_S, _Restoring
from s3mount.config import StoreConfig
from s3mount.errors import AccessDeniedError
from s3mount.refs import ObjectHeaders, ObjectInfo
from s3mount.s3.account import Restorer
from s3mount.s3.headers import object_info
from s3mount.testing.memory_store import MemoryStore
from tests.unit.s3.fault_server import Exchange, faulty_store, refuse


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({}, None),
        ({"x-amz-storage-class": "GLACIER_IR"}, None),
        ({"x-amz-storage-class": "INTELLIGENT_TIERING"}, None),
        ({"x-amz-storage-class": "DEEP_ARCHIVE"}, "archived"),
        ({"x-amz-archive-status": "ARCHIVE_ACCESS"}, "archived"),
        (
            {"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="true"'},
            "restoring",
        ),
        ({"x-amz-storage-class": "GLACIER", "x-amz-restore": "nonsense"}, "archived"),
        ({"x-amz-restore": 'ongoing-request="false"'}, "restored"),
        (
            {
                "x-amz-restore": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"'
            },
            "restored until 2012-12-21T00:00:00Z",
        ),
    ],
)
def test_what_head_tells_of_an_archive(answer: dict[str, str], state: str | None) -> None:
    assert object_info("key", answer, 5).archive == state


async def accepted(exchange: Exchange) -> None:
    await exchange.answer(202)


def asked(exchange: Exchange) -> dict[str, str]:
    """What a RestoreRequest says, by its element's name."""
    root = ElementTree.fromstring(exchange.body)
    assert root.tag.rpartition("}")[2] == "RestoreRequest"
    return {each.tag.rpartition("}")[2]: (each.text or "").strip() for each in root.iter()}


def test_the_request_and_what_comes_of_it() -> None:
    async def main() -> None:
        async with faulty_store() as (server, store):
            restorer = await trio.to_thread.run_sync(Restorer, store.config)

            async def ask(days: int | None) -> None:
                await trio.to_thread.run_sync(
                    lambda: restorer.restore("a b", days=days, tier="Bulk")
                )

            server.then(accepted, accepted, refuse(409, "RestoreAlreadyInProgress"))
            await ask(3)
            seen = server.seen[-1]
            assert (seen.method, seen.key, "restore" in seen.query) == ("POST", "a b", True)
            told = asked(seen)
            assert (told["Days"], told["Tier"]) == ("3", "Bulk")
            await ask(None)
            assert "Days" not in asked(server.seen[-1])
            await ask(3)
            server.then(refuse(503, "SlowDown"), accepted)
            await ask(3)
            server.then(refuse(403, "AccessDenied"))
            with pytest.raises(AccessDeniedError):
                await ask(3)

    trio.run(main)


class Archive(MemoryStore):
    """A store whose archived objects come back ``after_s`` they were asked for."""

    def __init__(self, after_s: float) -> None:
        super().__init__()
        self.after_s = after_s
        self.asked_at_s: dict[str, float] = {}

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        about = await super().head(key, version_id=version_id)
        state = None if about.storage_class is None else "archived"
        if key in self.asked_at_s:
            is_back = trio.current_time() >= self.asked_at_s[key] + self.after_s
            state = "restored until 2030-01-01T00:00:00Z" if is_back else "restoring"
        return msgspec.structs.replace(about, archive=state)

    def restore(self, key: str, *, days: int | None, tier: str) -> None:
        assert (days, tier, key in self.asked_at_s) == (7, "Standard", False)
        self.asked_at_s[key] = trio.from_thread.run_sync(trio.current_time)

    async def store(self, config: StoreConfig, bucket: str) -> MemoryStore:
        return self


@pytest.mark.parametrize("is_waiting", [True, False])
def test_all_is_asked_for_before_anything_is_waited_for(
    is_waiting: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Archive(after_s=600)
    monkeypatch.setattr("s3mount.s3.account.Restorer", lambda config: archive)
    given = {"dry_run": False, "days": 7, "tier": "Standard", "is_waiting": is_waiting}
    given |= {"quiet": False, "as_json": False}
    report = Report("restore", write=print, complain=print)
    restoring = _Restoring(given, report, S3Location("bucket", "d/"))
    keys = {f"d/{number}" for number in range(3 * AT_ONCE)}

    async def main() -> None:
        for key in keys:
            await archive.put(key, b"x", ObjectHeaders(storage_class="GLACIER"))
        await archive.put("d/beside", b"x", ObjectHeaders())
        await restoring.ask(cast(Any, archive), StoreConfig(bucket="bucket"))
        asked_s = trio.current_time()
        assert set(archive.asked_at_s) == keys
        await restoring.wait()
        waited_s = trio.current_time() - asked_s
        assert 600 <= waited_s <= 600 + LOOK_EVERY_S if is_waiting else waited_s == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
    told = capsys.readouterr().out.splitlines()
    state = "restored until 2030-01-01T00:00:00Z" if is_waiting else "restoring"
    assert sorted(told) == sorted(f"{state}  s3://bucket/{key}" for key in keys)
    assert (report.counts.objects, report.counts.failed) == (len(keys), 0)
