"""What a mount knows for uploads and learns from them; contents that S3 has already."""
