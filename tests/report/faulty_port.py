"""`sd1_impl` with a wrong choice in each of three components."""

from __future__ import annotations

from dataclasses import replace

from conformance.adapters import sd1_impl
from conformance.mutants.catalogue import find_mutants
from conformance.mutants.port import MutantPort

WRONG = {
    "unet": "unet-geglu-tanh",
    "vae_decoder": "vae-gn-eps",
    "pipeline/txt2img": "pipe-cfg-formula",
}


class FaultyPort:
    """Hands each of these components to its mutant, and the others to `sd1_impl`."""

    def __init__(self):
        self.right = sd1_impl.port()
        self.wrong = {name: MutantPort(*find_mutants([mutant])) for name, mutant in WRONG.items()}

    def hello(self):
        """Say what sd1_impl says, under another name."""
        return replace(self.right.hello(), name="faulty_port", version="1.0")

    def load(self, component, *rest):
        """Load a component, right or wrong."""
        return self.wrong.get(component, self.right).load(component, *rest)


def port():
    """Build the port."""
    return FaultyPort()
