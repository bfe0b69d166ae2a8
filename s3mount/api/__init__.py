"""s3mount from Python: buckets for trio programs, a front for all others, and an fsspec file system."""
