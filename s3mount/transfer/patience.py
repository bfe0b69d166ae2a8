"""When to give up on a store: objects that fail one after the other, and nothing that answers."""

from __future__ import annotations

from s3mount.errors import ChecksumError, StoreError
from s3mount.s3.store import Store

FRUITLESS_MAX = 8
"""So many objects in a row fail, each after all its tries, before the store is asked whether it is there."""


class Patience:
    """Tells what befalls one object from what befalls all, over the objects of one command."""

    def __init__(self) -> None:
        self._fruitless = 0

    def heard(self) -> None:
        """The store answered as it should."""
        self._fruitless = 0

    async def unheard(self, store: Store, error: StoreError) -> None:
        """An object failed by a retryable error. Raises it when the store does not answer at all.

        What is refused, such as a list that these credentials may not have, is an answer.
        """
        if isinstance(error, ChecksumError):
            return
        self._fruitless += 1
        if self._fruitless < FRUITLESS_MAX:
            return
        self._fruitless = 0
        try:
            await store.check_bucket()
        except StoreError as refusal:
            if refusal.retryable:
                raise error from refusal
