"""The local files of what was written: sparse, with a checksum for each block."""
