"""What keeps a mount from working, on this machine and in a bucket, found out by trying."""
