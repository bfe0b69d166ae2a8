from __future__ import annotations

import datetime
import threading

import pytest
import trio
import trio.testing
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.credentials import RefreshableCredentials

from s3mount.errors import NoCredentialsError
from s3mount.s3.http.credentials import LOOK_EVERY_S, CredentialSource
from s3mount.s3.http.signing import Credentials


def role(lasts_s: float, renewed: list[int], wait: threading.Event | None = None):  # type: ignore[no-untyped-def]
    """Credentials that expire; ``renewed`` counts how often they were asked for."""

    def ask() -> dict[str, str]:
        if wait is not None and renewed:
            assert wait.wait(10)
        renewed.append(1)
        expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=lasts_s)
        return {
            "access_key": f"key{len(renewed)}",
            "secret_key": "secret",
            "token": "token",
            "expiry_time": expiry.isoformat(),
        }

    return RefreshableCredentials.create_from_metadata(ask(), refresh_using=ask, method="test")


def test_lasting_credentials_are_asked_for_once() -> None:
    async def main() -> None:
        source = CredentialSource(BotocoreCredentials("key", "secret"), lambda: None)
        assert not source.ready(trio.current_time())
        await source.renew()
        assert source.ready(trio.current_time() + 1e9)
        assert source.current == Credentials("key", "secret", None)

    trio.run(main)


def test_no_credentials_are_needed_for_unsigned_requests() -> None:
    async def main() -> None:
        source = CredentialSource(None, lambda: None)
        assert source.ready(trio.current_time())
        await source.renew()
        assert source.current is None

    trio.run(main)


def test_expiring_credentials_are_renewed_ahead_while_others_go_on() -> None:
    renewed: list[int] = []
    told: list[int] = []
    go = threading.Event()

    async def main() -> None:
        # Ten minutes are left: botocore wants to renew them, but they are still good.
        source = CredentialSource(role(600, renewed, go), lambda: told.append(1))
        go.set()
        await source.renew()
        first = source.current
        go.clear()
        assert source.ready(trio.current_time())
        await trio.sleep(LOOK_EVERY_S + 0.1)
        assert not source.ready(trio.current_time())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.renew)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(5):
                await source.renew()  # does not wait for the one that is at it
            assert source.current == first
            go.set()
        assert source.current != first
        assert len(told) == 1

    trio.run(main, clock=trio.testing.MockClock(rate=50))


def test_credentials_that_cannot_be_had_say_so() -> None:
    class Broken(BotocoreCredentials):
        def get_frozen_credentials(self):  # type: ignore[no-untyped-def]
            raise RuntimeError("the token\nhas expired")

    async def main() -> None:
        with pytest.raises(NoCredentialsError, match="the token has expired"):
            await CredentialSource(Broken("a", "b"), lambda: None).renew()
        with pytest.raises(NoCredentialsError, match="incomplete"):
            await CredentialSource(BotocoreCredentials("a", ""), lambda: None).renew()

    trio.run(main)
