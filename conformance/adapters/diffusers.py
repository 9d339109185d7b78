"""diffusers and transformers themselves as a port: the reference judged by its own suite."""

from __future__ import annotations

import diffusers

from conformance.adapters import diffusers_sampling as sampling
from conformance.adapters.diffusers_networks import NETWORKS, Tokenizer
from conformance.adapters.torch_module import TorchPort


def port() -> TorchPort:
    """Return diffusers, with transformers, as a port."""
    return TorchPort(
        "diffusers", diffusers.__version__, NETWORKS, Tokenizer, others=sampling.LOADERS
    )
