"""What mounts tell of themselves, for Prometheus and for a browser, by a process of its own that asks them."""
