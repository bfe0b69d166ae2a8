"""Read-only views of one time, and the folder in which they stand."""
