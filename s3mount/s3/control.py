"""The control plane: boto3 in threads, for calls that are few and need no speed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import trio

from s3mount.config import StoreConfig
from s3mount.errors import DeadlineError, StoreError
from s3mount.flow.backoff import Backoff
from s3mount.refs import Key
from s3mount.s3.credentials import STALE_CODES, Renew
from s3mount.s3.mapping import Refusal, from_boto
from s3mount.s3.resolve import CONTROL_CONNECTIONS, CONTROL_READ_TIMEOUT_S, S3Client
from s3mount.s3.statistics import Statistics

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Control:
    """boto3's client for one bucket. Calls are bounded by its own time-outs and, above, by ours.

    A cancelled call goes on in its thread until boto3's read time-out; its place in the limiter
    is held until then, so that abandoned threads stay bounded too.
    """

    def __init__(
        self, config: StoreConfig, client: S3Client, statistics: Statistics, renew: Renew
    ) -> None:
        self.client = client
        self._renew = renew
        self._config = config
        self._statistics = statistics
        self._limiter = trio.CapacityLimiter(CONTROL_CONNECTIONS)
        self._backoff = Backoff()
        self._common: dict[str, Any] = {"Bucket": config.bucket}
        if config.request_payer:
            self._common["RequestPayer"] = "requester"

    def close(self) -> None:
        """Close boto3's idle connections."""
        self.client.close()

    async def run(self, kind: str, key: Key, function: Callable[[], _T]) -> _T:
        """Run ``function`` in a thread, again after errors that may pass. Raises StoreError."""
        retry = 0
        while True:
            try:
                return await self._once(kind, key, function)
            except StoreError as error:
                if error.code in STALE_CODES and await self._renew():
                    continue
                retry += 1
                if not error.retryable or retry >= self._config.tries_max:
                    raise
                delay_s = self._backoff.delay_s(retry, retry_after_s=error.retry_after_s)
                _log.debug("try %d of %s failed: %s", retry, kind, error.describe())
            self._statistics.retries += 1
            await trio.sleep(delay_s)

    async def _once(self, kind: str, key: Key, function: Callable[[], _T]) -> _T:
        # Above boto3's own limits, for an answer that trickles in.
        allowed_s = self._config.connect_timeout_s + 2 * CONTROL_READ_TIMEOUT_S
        self._statistics.count(kind)
        began_s = trio.current_time()
        with trio.move_on_after(allowed_s) as scope:
            try:
                return await self._in_thread(key, function)
            except StoreError:
                self._statistics.failed += 1
                raise
            finally:
                now = trio.current_time()
                self._statistics.ended(now - began_s, now - scope.deadline)
        self._statistics.failed += 1
        self._statistics.overdue += 1
        raise DeadlineError(f"the store did not answer within {allowed_s:.0f} s", key=key)

    async def _in_thread(self, key: Key, function: Callable[[], _T]) -> _T:
        def guarded() -> _T:
            try:
                return function()
            except StoreError:
                raise
            except Exception as error:
                # boto3 raises its own types, and those of what it is built on.
                raise from_boto(error, key=key, bucket=self._config.bucket) from error

        return await trio.to_thread.run_sync(guarded, limiter=self._limiter, abandon_on_cancel=True)

    async def delete_many(self, keys: Sequence[Key]) -> list[StoreError | None]:
        """DeleteObjects. One entry per key: its error, or ``None``."""
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def delete() -> list[StoreError | None]:
            said = self.client.delete_objects(**self._common, Delete=objects)
            failed = {entry["Key"]: entry for entry in said.get("Errors", ())}
            return [self._entry_error(key, failed.get(key)) for key in keys]

        return await self.run("delete_many", "", delete)

    def _entry_error(self, key: Key, entry: dict[str, str] | None) -> StoreError | None:
        if entry is None or entry.get("Code") == "NoSuchKey":
            return None
        refusal = Refusal(200, {}, b"")
        refusal.code = entry.get("Code", "")
        refusal.message = entry.get("Message", "")
        return refusal.error(key=key, bucket=self._config.bucket)

    async def versioning(self) -> str:
        """``enabled``, ``suspended`` or ``off``, by GetBucketVersioning."""

        def ask() -> str:
            said = self.client.get_bucket_versioning(Bucket=self._config.bucket)
            return {"Enabled": "enabled", "Suspended": "suspended"}.get(said.get("Status"), "off")

        return await self.run("check_bucket", "", ask)
