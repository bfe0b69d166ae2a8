"""One request: signed, sent over a kept connection, its answer judged."""
