"""Text (and later other conditions) to the `Condition` that the generators attend to."""
