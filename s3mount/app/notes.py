"""What a person should know of a mount that works: told when it is there, logged, and shown by the status."""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from s3mount.errors import S3MountError
from s3mount.manifest.versions.dating import WRONG_DATES, TriesDates, are_dates_right
from s3mount.s3.store import Store

log = logging.getLogger(__name__)

ASKED_FOR_S = 60.0
"""So long an answer is waited for that nothing else depends on."""

LOOK_S = 2.0


class TellsRules(Protocol):
    """What a store tells of lifecycle rules."""

    async def noncurrent_rule(self, prefix: str = "") -> str:
        """See ``Store.noncurrent_rule``."""
        ...


class Notes:
    """Grows while the mount is there: what is asked of S3 for it delays nothing."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def add(self, text: str) -> None:
        """Note it, and log it."""
        self.told.append(text)
        log.warning("%s", text)

    async def ask_for_rule(self, store: TellsRules, prefix: str) -> None:
        """Note when a lifecycle rule destroys old versions: the past is then not all there."""
        with trio.move_on_after(ASKED_FOR_S):
            try:
                rule = await store.noncurrent_rule(prefix)
            except S3MountError as error:
                log.info("the bucket's lifecycle rules are unknown: %s", error)
                return
            if rule:
                self.add(
                    f"{rule}: of then only what is still there is shown, in its place older content or nothing; "
                    "a manifest that was made in time tells what is missing"
                )

    async def ask_for_dates(self, store: TriesDates, prefix: str, suspected: trio.Event) -> None:
        """Note when the store dates its versions wrongly; tried once it is ``suspected``."""
        await suspected.wait()
        if not await are_dates_right(store, prefix):
            self.add(WRONG_DATES)

    async def ask_for_hidden_keys(self, store: Store, prefix: str) -> None:
        """Note when keys lie below ``prefix``, where the past is shown in their place.

        One request, for which the mount waits LOOK_S at most.
        """
        with trio.move_on_after(LOOK_S):
            try:
                page = await store.list_page(prefix, max_keys=1)
            except S3MountError as error:
                log.info("whether keys lie below %r is unknown: %s", prefix, error)
                return
            if page.objects:
                self.add(
                    f"keys below {prefix!r} are not shown, as --snapshots shows the past there; "
                    "--snapshots=NAME takes another name for it"
                )
