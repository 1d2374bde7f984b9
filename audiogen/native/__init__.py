"""The C++ kernels: their source, and what builds and loads it."""
