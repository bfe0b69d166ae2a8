from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.subjects import SUBJECTS, Subject, set_credentials
from tests.servers import S3Server


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """Every kind of store in turn, on empty buckets of the test's own."""
    name: str = request.param
    server: S3Server | None = None
    if name != "memory":
        kind = name.partition("-")[0]
        server = request.getfixturevalue(kind)
        assert server is not None
        if name.endswith("https") and server.https_url is None:
            pytest.skip("this server has no https")
        set_credentials(monkeypatch, server)
    made = Subject(name, server)
    yield made
    made.close()
