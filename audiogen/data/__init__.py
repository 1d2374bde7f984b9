"""Files to batches: manifests, crops, mixing, the built-in corpus, token shards, and the loader."""
