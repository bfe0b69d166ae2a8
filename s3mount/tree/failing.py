"""What comes out of a nursery whose tasks ask S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from s3mount.errors import S3MountError


@contextmanager
def first_error() -> Iterator[None]:
    """Around a nursery: of the S3MountErrors of its tasks the first one is raised, by itself.

    Also when it is being cancelled just then: with ``except*`` the error would stay in a group together
    with ``Cancelled``, past everybody who expects an S3MountError. What else failed is raised as the group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        found, rest = group.split(S3MountError)
        if found is None or (rest is not None and rest.split(trio.Cancelled)[1] is not None):
            raise
        error: BaseException = found
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
