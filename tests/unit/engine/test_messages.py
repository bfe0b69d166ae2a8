"""Everything crosses unchanged; errors are rebuilt as what they were."""

from __future__ import annotations

import inspect
import types

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount import errors
from s3mount.engine import messages
from s3mount.errors import S3MountError, ServerFaultError, StoreError, ThrottledError, UsageError
from s3mount.refs import Condition, ObjectHeaders
from s3mount.s3.store import Readable, Store

ALL_ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, S3MountError)
]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_of_the_tree_crosses_as_itself(kind: type[S3MountError]) -> None:
    if issubclass(kind, StoreError):
        error: S3MountError = kind("why", key="k é", status=418, code="Teapot", request_id="r1")
    else:
        error = kind("why")
    record = msgspec.msgpack.decode(
        msgspec.msgpack.encode(messages.record_of(error)), type=messages.ErrorRecord
    )
    rebuilt = messages.error_of(record)
    assert type(rebuilt) is kind
    assert str(rebuilt) == "why"
    assert vars(rebuilt) == vars(error) | (
        {"retry_after_s": None} if isinstance(error, StoreError) else {}
    )


def test_the_pause_that_a_store_asks_for_crosses_too() -> None:
    error = ThrottledError("slow down")
    error.retry_after_s = 7.5
    rebuilt = messages.error_of(messages.record_of(error))
    assert isinstance(rebuilt, ThrottledError)
    assert rebuilt.retry_after_s == 7.5


@pytest.mark.parametrize("name", ["Exception", "builtins", "", "S3Mount", "annotations"])
def test_a_name_outside_of_the_tree_is_a_fault_of_the_server(name: str) -> None:
    rebuilt = messages.error_of(messages.ErrorRecord(name, "why", "k"))
    assert type(rebuilt) is ServerFaultError
    assert rebuilt.key == "k"


def test_an_error_that_is_none_of_the_stores_has_no_keys() -> None:
    assert isinstance(messages.error_of(messages.record_of(UsageError("x"))), UsageError)


def test_every_method_of_the_store_has_its_request() -> None:
    methods = {
        name
        for kind in (Store, Readable)
        for name, member in vars(kind).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_")
    }
    requests = {
        kind.__doc__.split("``")[1].removeprefix("Store.")
        for kind in vars(messages).values()
        if isinstance(kind, type)
        and issubclass(kind, messages.Request)
        and kind is not messages.Request
        and kind.__doc__
    }
    assert requests == methods


def test_tags_are_unique() -> None:
    for union in (messages.ToChild, messages.ToParent):
        assert isinstance(union, types.UnionType)
        tags = [kind.__struct_config__.tag for kind in union.__args__]
        assert len(tags) == len(set(tags))


@given(st.text(), st.binary(), st.dictionaries(st.text(), st.text()), st.binary(max_size=50))
def test_what_people_may_name_and_store_crosses_unchanged(
    key: str, body: bytes, metadata: dict[str, str], path: bytes
) -> None:
    headers = ObjectHeaders(metadata=types.MappingProxyType(metadata))
    for sent in (body, messages.Slice(path, 1, 2)):
        put = messages.Put(1, key, sent, headers, Condition(if_match="e"))
        try:
            frame = messages.ENCODER.encode(put)
        except UnicodeEncodeError:
            continue  # a lone surrogate; the client turns it into RejectedError
        got = messages.decoder_for_child().decode(frame)
        assert isinstance(got, messages.Put)
        assert (got.key, got.body, got.condition) == (key, sent, put.condition)
        assert got.headers.metadata == metadata
