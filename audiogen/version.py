"""The version of the package, apart from `audiogen/__init__.py`, whose public names need all the rest."""

__version__ = "0.1.0"
