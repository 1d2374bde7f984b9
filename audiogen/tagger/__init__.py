"""A small sound event tagger: what is heard, when, and an embedding to compare sets of sounds by."""
