"""Evaluation: embedders, metrics with intervals, and the comparisons that report them."""
