"""Models from one layout to another."""
