"""Training: one loop (`loop.fit`), one file per task."""
