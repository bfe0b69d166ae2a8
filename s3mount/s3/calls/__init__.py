"""S3's calls, one function each, over ``s3/http``."""
