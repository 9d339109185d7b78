"""Stable Diffusion v1 in plain NumPy: one file for each part, no framework."""
