"""A small sound event tagger: which sounds, when, and an embedding to compare sets of sounds."""
