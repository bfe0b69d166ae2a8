"""What a bucket's lifecycle rules do to versions that are no longer current."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from s3mount.s3.documents import parse_document


def parse_rules(body: bytes) -> Mapping[str, Any]:
    """A LifecycleConfiguration as ``noncurrent_rule`` takes it. Raises ServerFaultError when it is none."""
    root, ns = parse_document(body, "LifecycleConfiguration", "Rule")
    return {"Rules": [_fields(rule) for rule in root.findall(f"{ns}Rule")]}


def _fields(element: ElementTree.Element) -> dict[str, Any]:
    return {
        child.tag.rpartition("}")[2]: _fields(child) if len(child) else child.text or ""
        for child in element
    }


def noncurrent_rule(configuration: Mapping[str, Any], prefix: str) -> str:
    """The first enabled rule that destroys noncurrent versions of keys below ``prefix``, in words.

    ``configuration`` is the answer to GetBucketLifecycleConfiguration, by ``parse_rules``. Empty: there is none.
    """
    for rule in configuration.get("Rules", ()):
        expiration = rule.get("NoncurrentVersionExpiration")
        below = _prefix_of(rule)
        concerns = below.startswith(prefix) or prefix.startswith(below)
        if rule.get("Status") != "Enabled" or not expiration or not concerns:
            continue
        days = expiration.get("NoncurrentDays", 0)
        newer = expiration.get("NewerNoncurrentVersions")
        name = f" {rule['ID']!r}" if rule.get("ID") else ""
        where = f" below {below!r}" if below else ""
        but = f", but for the newest {newer}" if newer else ""
        return f"the lifecycle rule{name} destroys versions{where} {days} days after they were replaced{but}"
    return ""


def _prefix_of(rule: Mapping[str, Any]) -> str:
    chosen = rule.get("Filter") or {}
    prefix = chosen.get("Prefix") or (chosen.get("And") or {}).get("Prefix") or rule.get("Prefix")
    return str(prefix or "")
