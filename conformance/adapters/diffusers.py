"""diffusers and transformers themselves as a port: the reference judged by its own suite."""

from __future__ import annotations

import diffusers

from conformance.adapters import diffusers_pipelines as pipelines
from conformance.adapters import diffusers_schedulers as schedulers
from conformance.adapters import diffusers_training as training
from conformance.adapters.diffusers_networks import NETWORKS, Tokenizer, save_memory, use_attention
from conformance.adapters.torch_module import TorchPort


def port() -> TorchPort:
    """Return diffusers, with transformers, as a port."""
    others = schedulers.LOADERS | pipelines.LOADERS | training.LOADERS
    return TorchPort(
        "diffusers",
        diffusers.__version__,
        NETWORKS,
        Tokenizer,
        others=others,
        attention=use_attention,
        saving=save_memory,
    )
