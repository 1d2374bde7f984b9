"""From a name to a model: what a name is, readers for published formats, and what is built from them."""
