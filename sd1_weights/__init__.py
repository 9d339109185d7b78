"""The files that Stable Diffusion v1 weights come in, without torch: containers, names, layouts.

The model and the engine both read and write through this package; it imports neither.
"""

from sd1_weights.errors import CheckpointError

__all__ = ["CheckpointError"]
