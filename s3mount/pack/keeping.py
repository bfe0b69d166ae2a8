"""The packs of one folder, as its bucket has them: found, read, and brought up to date."""

from __future__ import annotations

import logging

import trio

from s3mount.errors import NoSuchKeyError, PackError, PreconditionFailedError
from s3mount.pack.finding import PACK_SUFFIX, Pack, load
from s3mount.pack.index import SUFFIX
from s3mount.pack.union import Union
from s3mount.refs import Key, ObjectInfo
from s3mount.s3.store import Store
from s3mount.tasks import first_error

log = logging.getLogger(__name__)

INDEXES_AT_ONCE = 16


class Keeper:
    """Keeps ``union`` at what lies directly in the folder ``prefix`` of ``store``."""

    def __init__(self, store: Store, bucket: str, prefix: Key, union: Union) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = prefix
        self._union = union
        self._lock = trio.Lock()
        self._asked_at = float("-inf")
        self._turn = self._asked_turn = 0
        self._unread: dict[Key, tuple[str, str]] = {}

    async def freshen(self, ttl_s: float) -> None:
        """Know the packs as they were at most ``ttl_s`` ago. Raises StoreError.

        An index that cannot be read is told in the log, once, and its pack has no names then.
        """
        wanted_at = trio.current_time() - ttl_s
        while self._is_older(wanted_at):
            async with self._lock:
                # Who held it may have asked after this was wanted.
                if self._is_older(wanted_at):
                    await self._look()

    def outdate(self) -> None:
        """What is known is to be believed no more: a pack may be there whose writer heard nothing of it."""
        self._turn += 1

    def _is_older(self, wanted_at: float) -> bool:
        return self._asked_at < wanted_at or self._asked_turn != self._turn

    async def _look(self) -> None:
        asked_at, asked_turn = trio.current_time(), self._turn
        before = set(self._union.packs)
        there = {pack.tar.key: pack for pack in await self._list()}
        gone = {
            key
            for key in before & self._union.packs.keys()
            if key not in there or there[key].tar.etag != self._union.packs[key].pack.tar.etag
        }
        if gone:
            self._union.remove(gone)
        new = [pack for key, pack in there.items() if key not in self._union.packs]
        self._unread = {key: why for key, why in self._unread.items() if key in there}
        slots = trio.CapacityLimiter(INDEXES_AT_ONCE)
        with first_error():
            async with trio.open_nursery() as nursery:
                for pack in new:
                    if self._unread.get(pack.tar.key) != _tags(pack):
                        nursery.start_soon(self._take, pack, slots)
        self._asked_at, self._asked_turn = asked_at, asked_turn

    async def _list(self) -> list[Pack]:
        tars: dict[Key, ObjectInfo] = {}
        indexes: dict[Key, ObjectInfo] = {}
        token = None
        while True:
            page = await self._store.list_page(self._prefix, delimiter="/", token=token)
            for info in page.objects:
                if info.key.endswith(PACK_SUFFIX):
                    tars[info.key] = info
                elif info.key.endswith(PACK_SUFFIX + SUFFIX):
                    indexes[info.key.removesuffix(SUFFIX)] = info
            token = page.next_token
            if token is None:
                return [Pack(tar, indexes.get(key)) for key, tar in tars.items()]

    async def _take(self, pack: Pack, slots: trio.CapacityLimiter) -> None:
        place = f"s3://{self._bucket}/{pack.tar.key}"
        async with slots:
            try:
                loaded = await load(self._store, pack, place)
            except PackError as error:
                log.warning("the names in a pack are not shown: %s", error)
                loaded = None
            except (NoSuchKeyError, PreconditionFailedError):
                # Removed or replaced since it was listed: the next look tells.
                return
        if loaded is None:
            self._unread[pack.tar.key] = _tags(pack)
        elif pack.tar.key not in self._union.packs:
            self._union.add(loaded)


def _tags(pack: Pack) -> tuple[str, str]:
    return pack.tar.etag, "" if pack.beside is None else pack.beside.etag
