"""Text to what models are conditioned on: T5, vocabularies, CLAP."""
