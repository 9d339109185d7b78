"""The suite's own from-scratch implementation as a port."""

from __future__ import annotations

from conformance import __version__
from conformance.adapters import sd1_impl_pipelines as pipelines
from conformance.adapters import sd1_impl_sampling as sampling
from conformance.adapters import sd1_impl_training as training
from conformance.adapters.sd1_impl_networks import (
    NETWORKS,
    Tokenizer,
    pack_weights,
    save_memory,
    use_attention,
)
from conformance.adapters.torch_module import TorchPort


def port() -> TorchPort:
    """Return sd1_impl as a port."""
    others = sampling.LOADERS | pipelines.LOADERS | training.LOADERS
    return TorchPort(
        "sd1_impl",
        __version__,
        NETWORKS,
        Tokenizer,
        others=others,
        attention=use_attention,
        saving=save_memory,
        packing=pack_weights,
    )
