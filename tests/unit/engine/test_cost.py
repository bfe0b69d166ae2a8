"""What the boundary costs the process that serves the file system.

Measured on 2 cores, us of processor time per call in the client, wake-ups and system calls included:

=============  ====  =========  ===================
calls at once  HEAD  PUT 4 KiB  a round trip, HEAD
=============  ====  =========  ===================
1              70    80         175
8              30    34
64             18    20
256            17    21
=============  ====  =========  ===================

The child spends 30 to 50 us on its side, at its lower priority.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from s3mount.engine.client import EngineClient
from s3mount.engine.process import EngineProcess
from s3mount.refs import Condition, ObjectHeaders
from tests.unit.engine.parents import CONFIG

COMMAND = [sys.executable, "-P", "-m", "tests.unit.engine.instant_child"]
HEADERS = ObjectHeaders(metadata={"mode": "33188", "mtime": "1.5", "uid": "0", "gid": "0"})
BODY = bytes(4096)
CALLS = 2000
ROUNDS = 5
ALLOWED_US = 60.0


async def head(client: EngineClient) -> None:
    await client.head("some/key/of/usual/length")


async def put(client: EngineClient) -> None:
    await client.put("some/key", BODY, HEADERS, condition=Condition(if_absent=True))


@pytest.mark.parametrize("call", [head, put])
def test_a_call_among_many_costs_the_client_little(
    call: Callable[[EngineClient], Awaitable[None]],
) -> None:
    """The best of a few rounds, since other processes share the caches."""
    costs_us: list[float] = []

    async def worker(client: EngineClient, count: int) -> None:
        for _ in range(count):
            await call(client)

    async def main() -> None:
        async with EngineClient(CONFIG, spawn=lambda: EngineProcess(COMMAND)) as client:
            await call(client)
            for _ in range(ROUNDS):
                before = time.process_time()
                async with trio.open_nursery() as nursery:
                    for _ in range(64):
                        nursery.start_soon(worker, client, CALLS // 64)
                costs_us.append((time.process_time() - before) / CALLS * 1e6)

    trio.run(main)
    assert min(costs_us) < ALLOWED_US, costs_us
