"""Generators behind HTTP. Needs the extra `serve`; nothing else in the package imports it."""
