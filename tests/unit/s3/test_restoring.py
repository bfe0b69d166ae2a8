"""What is asked of an archive, what it tells, and how ``s3mount restore --wait`` waits for it."""

from __future__ import annotations

from typing import Any, cast
from xml.etree import ElementTree

import pytest
import trio
import trio.testing

from s3mount.bulk.location import S3Location
from s3mount.bulk.selecting import Item
from s3mount.cli.mounts.restore import LOOK_EVERY_S, _Restoring
from s3mount.errors import AccessDeniedError
from s3mount.refs import ObjectInfo
from s3mount.s3.account import Restorer
from s3mount.s3.headers import object_info
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


class Archive:
    """A store whose object comes back ``hours`` after it was asked for."""

    def __init__(self, hours: float) -> None:
        self.hours = hours
        self.back_at_s: float | None = None
        self.days: list[int | None] = []

    async def head(self, key: str) -> ObjectInfo:
        await trio.lowlevel.checkpoint()
        state = "archived"
        if self.back_at_s is not None:
            is_back = trio.current_time() >= self.back_at_s
            state = "restored until 2030-01-01T00:00:00Z" if is_back else "restoring"
        return ObjectInfo(key, 1, "e", 1, storage_class="GLACIER", archive=state)

    def restore(self, key: str, *, days: int | None, tier: str) -> None:
        self.days.append(days)
        self.back_at_s = trio.from_thread.run_sync(trio.current_time) + self.hours * 3600


@pytest.mark.parametrize("is_waiting", [True, False])
def test_it_waits_only_if_asked(is_waiting: bool) -> None:
    archive = Archive(hours=0.2)
    given = {"dry_run": False, "days": 7, "tier": "Standard", "is_waiting": is_waiting}
    restoring = _Restoring(given, cast(Any, None), S3Location("bucket", "k"))

    async def main() -> None:
        began_s = trio.current_time()

        async def run() -> str:
            return await restoring._restored(
                cast(Any, archive), cast(Any, archive), Item("s3://bucket/k", "k", key="k")
            )

        state = await run()
        took_s = trio.current_time() - began_s
        if is_waiting:
            assert state.startswith("restored until")
            assert 720 <= took_s <= 720 + LOOK_EVERY_S
        else:
            assert (state, took_s < LOOK_EVERY_S) == ("restoring", True)
            assert await run() == "restoring"
        assert archive.days == [7]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
