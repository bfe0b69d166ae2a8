"""Commands on mounts and on what they left."""
