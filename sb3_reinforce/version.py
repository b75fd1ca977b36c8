"""The version of the package, as in pyproject.toml. Repeated here, so that it can be imported without being installed."""

__version__ = "0.2.0"
