"""An S3 bucket as a directory that people can trust with the only copy of their data."""

__version__ = "0.1.0"
