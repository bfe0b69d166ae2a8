"""Side-by-side benchmarks of S3 mounts: the same work, one server, one run, ratios as a table."""
