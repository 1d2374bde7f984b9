"""Neural audio codec: audio to discrete tokens and back (EnCodec, arXiv:2210.13438)."""
