"""Text to audio, whatever the family: token language models and latent diffusion."""
