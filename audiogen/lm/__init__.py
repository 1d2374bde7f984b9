"""Language models over codec tokens: patterns, the transformer, sampling, and models on disk."""
