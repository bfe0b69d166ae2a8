"""The formats in which manifests are read and written."""
