"""Changes of names and attributes: create, remove, rename, chmod, utimes."""
