"""Other engines that `tools/bench_rivals.py` compares with."""
