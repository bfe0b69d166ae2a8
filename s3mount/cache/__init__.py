"""Bytes of the bucket on the local disk: blocks, eviction, prefetch, and the reader above them."""
