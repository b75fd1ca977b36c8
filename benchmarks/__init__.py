"""Measurements of speed, learning and variance: ``python -m benchmarks.NAME``, from the folder of the project."""

from benchmarks import common  # noqa: F401  (which sets the number of threads, before NumPy is imported)
