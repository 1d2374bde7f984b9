"""Latent diffusion and flow matching: what is learned (process), how it is sampled, and the networks that do it."""
