"""What lies on disk: weights and checkpoints (safetensors, whole or not at all), the hub, pickles read as data."""
