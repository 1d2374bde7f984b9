"""What a generator is and what it can do."""
