"""The version of what is installed, which pyproject.toml reads too."""

__version__ = "0.1.0"
