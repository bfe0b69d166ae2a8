"""What is kept with an object although these credentials may not write it, or this store does not take it.

Tags, grants, retention and a named encryption each need a right of their own. A write that is refused
with them is tried without: the bytes and the metadata come first. What was left out is said once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeAlias, TypeVar

from s3mount.errors import AccessDeniedError, CustomerKeyError, RejectedError, StoreError
from s3mount.refs import Key, ObjectHeaders
from s3mount.s3.headers import ACL, ACL_PREFIXES, LOCK_PREFIX, SSE, TAGGING, TAGGING_DIRECTIVE

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_Less: TypeAlias = Callable[[dict[str, str]], dict[str, str]]
_PRIVATE = {ACL: "private"}


class Rights:
    """Sends writes with as much as is allowed. What ``new_objects`` names is never left out."""

    def __init__(self, new_objects: ObjectHeaders) -> None:
        self._new = new_objects
        self._said: set[str] = set()

    async def as_allowed(
        self,
        key: Key,
        wanted: dict[str, str],
        headers: ObjectHeaders,
        attempt: Callable[[dict[str, str]], Awaitable[_T]],
        *,
        takes_tags_along: bool = False,
    ) -> _T:
        """``attempt`` with the request headers ``wanted``, or with fewer where they are refused.

        ``headers`` are what ``wanted`` was made from; ``takes_tags_along``: a copy that keeps its source's
        tags. Raises what the first attempt raised when none helps.
        """
        if self._new.acl and headers.acl is not None and not headers.acl:
            # Private to its owner, and to stay so whatever new objects get.
            wanted = wanted | _PRIVATE
        try:
            return await attempt(wanted)
        except CustomerKeyError:
            raise
        except (AccessDeniedError, RejectedError) as error:
            refusal: StoreError = error
        for left_out, less in self._fewer(wanted, headers, takes_tags_along=takes_tags_along):
            try:
                result = await attempt(less)
            except (AccessDeniedError, RejectedError):
                continue
            self._say(left_out, key, refusal)
            return result
        raise refusal

    def _fewer(
        self, wanted: dict[str, str], headers: ObjectHeaders, *, takes_tags_along: bool
    ) -> Iterator[tuple[list[str], dict[str, str]]]:
        """What may be left out, each thing by itself and then all of them, and the rest."""
        less: dict[str, _Less] = {}
        if TAGGING in wanted and TAGGING_DIRECTIVE not in wanted:
            less["tags"] = partial(_without, prefixes=(TAGGING,))
        elif TAGGING in wanted or takes_tags_along:
            less["tags"] = lambda kept: _without(kept, (TAGGING,)) | {TAGGING_DIRECTIVE: "REPLACE"}
        elif TAGGING_DIRECTIVE in wanted:
            less["the tagging directive"] = partial(_without, prefixes=(TAGGING,))
        if headers.acl and any(name.startswith(ACL_PREFIXES) for name in wanted):
            less["the ACL"] = partial(_without, prefixes=ACL_PREFIXES)
        if any(name.startswith(LOCK_PREFIX) for name in wanted):
            less["the object lock"] = partial(_without, prefixes=(LOCK_PREFIX,))
        if wanted.get(SSE) == "AES256" and self._new.encryption != "AES256":
            # What S3 does by itself: a policy may demand another, the store may not want it named.
            less["the encryption"] = partial(_without, prefixes=(SSE,))
        for name, leave_out in less.items():
            yield [name], leave_out(wanted)
        if len(less) > 1:
            kept = wanted
            for leave_out in less.values():
                kept = leave_out(kept)
            yield list(less), kept

    def _say(self, left_out: list[str], key: Key, refusal: StoreError) -> None:
        what = " and ".join(left_out)
        level = logging.DEBUG if what in self._said else logging.WARNING
        self._said.add(what)
        _log.log(
            level,
            "%s of %r and others cannot be kept, as the store refuses them: %s",
            what,
            key,
            refusal.describe(),
        )


def _without(wanted: dict[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if not name.startswith(prefixes)}
