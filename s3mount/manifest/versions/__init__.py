"""Manifests from the versions in a bucket."""
