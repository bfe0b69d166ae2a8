"""Credentials that are fresh when a request is signed, without ever holding up the loop."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.credentials import RefreshableCredentials

from s3mount.errors import NoCredentialsError, StoreError
from s3mount.s3.http.signing import Credentials

LOOK_EVERY_S = 5.0
"""How often expiring credentials are asked whether they want to be renewed."""
MUST_RENEW_S = 60
"""With less than this left, requests wait for the renewal instead of using what there is."""


STALE_CODES = frozenset(
    (
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "TokenRefreshRequired",
    )
)
"""Refusals that other credentials may cure: somebody rotated keys or logged in again."""

Renew: TypeAlias = Callable[[StoreError], Awaitable[bool]]
"""Ask boto3 for credentials anew if that may cure the error; ``True`` when they are others than before."""


def files_of_settings() -> tuple[object, ...]:
    """What tells AWS's credentials and config files from what they were: an exchange changes it."""
    found: list[object] = []
    for variable, usual in (
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        ("AWS_CONFIG_FILE", "~/.aws/config"),
    ):
        try:
            told = os.stat(os.path.expanduser(os.environ.get(variable) or usual))
        except OSError:
            found.append(None)
            continue
        found.append((told.st_ino, told.st_size, told.st_mtime_ns))
    return tuple(found)


class CredentialSource:
    """Credentials of one session. ``given`` is ``None`` when requests are not signed.

    botocore renews expiring ones (roles, SSO, instance profiles) with network calls that block; they
    run in a thread here, begun 15 minutes ahead by botocore's own rule.
    """

    def __init__(self, given: BotocoreCredentials | None, on_renewed: Callable[[], None]) -> None:
        self._given = given
        self._on_renewed = on_renewed
        self._frozen: Credentials | None = None
        self._look_at_s = float("-inf")
        self._renewing = trio.Lock()

    def ready(self, now_s: float) -> bool:
        """May ``current`` be used without ``renew``? ``now_s`` is trio's time."""
        return self._given is None or (self._frozen is not None and now_s < self._look_at_s)

    @property
    def current(self) -> Credentials | None:
        """What to sign with, as of the last renewal."""
        return self._frozen

    async def renew(self) -> None:
        """Look whether the credentials want renewal, and renew them.

        While they are still good, one request does it and the others go on with what there is.
        Raises NoCredentialsError when they cannot be had, or what keeps a session from being begun.
        """
        given = self._given
        if given is None or (self._renewing.locked() and self._still_good(given)):
            await trio.lowlevel.checkpoint()
            return
        async with self._renewing:
            if self.ready(trio.current_time()):
                return
            frozen = await trio.to_thread.run_sync(_freeze, given, abandon_on_cancel=True)
            if self._frozen is not None and frozen != self._frozen:
                self._on_renewed()
            self._frozen = frozen
            expiring = isinstance(given, RefreshableCredentials)
            self._look_at_s = trio.current_time() + LOOK_EVERY_S if expiring else float("inf")

    def _still_good(self, given: BotocoreCredentials) -> bool:
        if self._frozen is None:
            return False
        return not (
            isinstance(given, RefreshableCredentials) and given.refresh_needed(MUST_RENEW_S)
        )


def _freeze(given: Any) -> Credentials:
    try:
        frozen = given.get_frozen_credentials()
    except StoreError:
        raise
    except Exception as error:
        # Providers raise whatever they like.
        line = " ".join(str(error).split())
        raise NoCredentialsError(f"the credentials cannot be renewed: {line}") from error
    if not frozen.access_key or not frozen.secret_key:
        raise NoCredentialsError("the credentials are incomplete")
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token or None)
