"""A store in memory that behaves as S3 does, for tests of s3mount and of programs that use it."""
