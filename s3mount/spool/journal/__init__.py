"""The rows of pending changes, and all that brings them back after a crash."""
