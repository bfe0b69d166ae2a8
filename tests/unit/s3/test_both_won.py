"""Stores that honour no conditions: a write that was under way at the same time is seen afterwards."""

from __future__ import annotations

import pytest
import trio

from s3mount.errors import PreconditionFailedError
from s3mount.refs import Condition, ObjectHeaders
from tests.unit.s3.fault_server import Exchange, behave, faulty_store, md5

OURS, THEIRS = b"ours", b"theirs"


async def raced(exchange: Exchange) -> None:
    """A PUT is taken, whatever its condition, and somebody else's right behind it."""
    for name in ("if-match", "if-none-match"):
        exchange.headers.pop(name, None)
    await behave(exchange)
    if exchange.method == "PUT":
        exchange.server.objects[exchange.key] = THEIRS


@pytest.mark.parametrize("is_sent", [True, False])
@pytest.mark.parametrize("condition", [Condition(if_absent=True), Condition(if_match=md5(b"base"))])
def test_who_came_last_without_conditions_is_seen(condition: Condition, is_sent: bool) -> None:
    """``is_sent``: the condition is ignored; else it is of no use, and is not sent any more."""

    async def main() -> None:
        async with faulty_store() as (server, store):
            store.traits.if_absent = store.traits.if_match = False
            if not is_sent:
                store.traits.unusable |= {"PUT If-None-Match", "PUT If-Match"}
            if condition.if_match:
                server.objects["key"] = b"base"
            server.usually = raced
            with pytest.raises(PreconditionFailedError, match="at the same time"):
                await store.put("key", OURS, ObjectHeaders(), condition=condition)
            server.objects = {"key": b"base"} if condition.if_match else {}
            server.usually = behave
            made = await store.put("key", OURS, ObjectHeaders(), condition=condition)
            assert made.etag == md5(OURS)
            assert [each.method for each in server.seen[-3:]] == ["HEAD", "PUT", "HEAD"]

    trio.run(main)
