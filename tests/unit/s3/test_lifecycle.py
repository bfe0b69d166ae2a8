from __future__ import annotations

from typing import Any

import pytest

from s3mount.errors import ServerFaultError
from s3mount.s3.calls.lifecycle import noncurrent_rule, parse_rules

EXPIRES = {"NoncurrentDays": 3}


def rule(**fields: Any) -> dict[str, Any]:
    return {"Status": "Enabled", "NoncurrentVersionExpiration": EXPIRES, **fields}


@pytest.mark.parametrize(
    ("rules", "prefix", "is_told"),
    [
        ([], "", False),
        ([rule()], "", True),
        ([rule(Status="Disabled")], "", False),
        ([{"Status": "Enabled", "Expiration": {"Days": 1}}], "", False),
        (
            [{"Status": "Enabled", "NoncurrentVersionTransitions": [{"NoncurrentDays": 1}]}],
            "",
            False,
        ),
        ([rule(Filter={"Prefix": "a/"})], "", True),
        ([rule(Filter={"Prefix": "a/"})], "a/b/", True),
        ([rule(Filter={"Prefix": "a/b/"})], "a/", True),
        ([rule(Filter={"Prefix": "a/"})], "b/", False),
        ([rule(Prefix="a/")], "b/", False),
        ([rule(Filter={"And": {"Prefix": "a/", "Tags": []}})], "b/", False),
        ([rule(Filter={"Prefix": "b/"}), rule(Filter={"Prefix": "a/"})], "a/", True),
    ],
)
def test_rules_that_destroy_old_versions_are_told(
    rules: list[dict[str, Any]], prefix: str, is_told: bool
) -> None:
    assert bool(noncurrent_rule({"Rules": rules}, prefix)) == is_told


def test_a_rule_is_told_in_words() -> None:
    kept = rule(ID="tidy", Filter={"Prefix": "a/"})
    kept["NoncurrentVersionExpiration"] = {"NoncurrentDays": 3, "NewerNoncurrentVersions": 2}
    assert noncurrent_rule({"Rules": [kept]}, "") == (
        "the lifecycle rule 'tidy' destroys versions below 'a/' 3 days after they were replaced, "
        "but for the newest 2"
    )


def test_rules_are_read_from_the_stores_document() -> None:
    document = (
        b'<LifecycleConfiguration xmlns="x"><Rule><ID>tidy</ID><Status>Enabled</Status>'
        b"<Filter><And><Prefix>a/</Prefix></And></Filter><NoncurrentVersionExpiration>"
        b"<NoncurrentDays>3</NoncurrentDays></NoncurrentVersionExpiration></Rule></LifecycleConfiguration>"
    )
    assert "below 'a/' 3 days after" in noncurrent_rule(parse_rules(document), "a/b")
    with pytest.raises(ServerFaultError):
        parse_rules(b"<html/>")
