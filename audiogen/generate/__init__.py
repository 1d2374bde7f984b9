"""The command `python -m audiogen.generate`."""
