"""Decoders of TokenLM that are faster than the module: C++, packed products of PyTorch, a graph on a GPU."""
