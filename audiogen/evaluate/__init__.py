"""Evaluation: embedders, metrics with intervals, and the comparisons that report them."""

EMBEDDERS = (
    "tagger_tiny, logmel, tagger:NAME_OR_DIR, codec:NAME_OR_DIR, clap:HUB_ID_OR_DIR, ast:HUB_ID_OR_DIR, panns:FILE, "
    "vggish:FILE or vggish:FILE,pca=FILE"
)
