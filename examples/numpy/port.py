"""Stable Diffusion v1 in plain NumPy, behind the port contract of sd1-conformance.

    sd1-conformance run examples/numpy/port.py:factory
    sd1-conformance run "exec:python conformance/adapters/serve.py examples/numpy/port.py:factory"

What the suite asks of a port is in this file; what SD v1 is, in `sd1_numpy`.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sd1_numpy.layers import Array
from sd1_numpy.module import Module, Network, Recorder, See
from sd1_numpy.pipeline import Pipeline
from sd1_numpy.resnet import resnet
from sd1_numpy.schedulers import SCHEDULERS, open_loop, scheduler_of
from sd1_numpy.text import text_encoder
from sd1_numpy.tokenizer import Tokenizer
from sd1_numpy.unet import RESNET_EPS, time_embedding, unet
from sd1_numpy.vae import vae_decoder, vae_encoder

Arrays = dict[str, Array]


def resnet_alone(module: Module, _sizes: Mapping[str, Any], **inputs: Array) -> Arrays:
    """Run a resnet of the UNet on a map and the embedding of the timestep."""
    return {"out": resnet(module, inputs["0"], inputs["1"], RESNET_EPS)}


def time_embedding_alone(module: Module, _sizes: Mapping[str, Any], **inputs: Array) -> Arrays:
    """Run the layers of the timestep embedding on its sinusoids."""
    return {"out": time_embedding(module, inputs["0"])}


NETWORKS: dict[str, Callable[..., Arrays]] = {
    "text_encoder": text_encoder,
    "unet": unet,
    "vae_encoder": vae_encoder,
    "vae_decoder": vae_decoder,
    "block/down_blocks.0.resnets.0": resnet_alone,
    "block/time_embedding": time_embedding_alone,
}


TASKS: dict[str, Callable[..., Arrays]] = {
    "pipeline/txt2img": Pipeline.txt2img,
    "pipeline/img2img": Pipeline.img2img,
    "pipeline/inpaint": Pipeline.inpaint,
}

SCALARS = ("guidance_scale", "strength", "num_images_per_prompt")


def tokenize(tokenizer: Tokenizer, _see: See, text: Array) -> Arrays:
    """Return the ids of texts."""
    return {"input_ids": np.array([tokenizer(one) for one in text.tolist()])}


def schedule(name: str, see: See, config: Mapping[str, Any], **arrays: Array) -> Arrays:
    """Run a scheduler, and show its tables in the dtype of the samples."""
    scheduler = scheduler_of(name, config)
    for table, values in scheduler.tables.items():
        see(table, values.astype(arrays["sample"].dtype))
    return open_loop(scheduler, **arrays)


@dataclass(frozen=True)
class Component:
    """A loaded component.

    Attributes:
        evaluate: Called with whoever watches, and with the inputs by name; returns the outputs.
        dtype: What floating inputs are cast to.
    """

    evaluate: Callable[..., Arrays]
    dtype: str

    def run(
        self,
        inputs: Mapping[str, Array],
        probes: Collection[str] = (),
        replace: Mapping[str, Array] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate it once.

        Args:
            inputs: Arrays, by the names of docs/contract.md.
            probes: Names of what to observe.
            replace: By name, values that take the place of what was observed.

        Returns:
            Outputs and probes, by name.
        """
        recorder = Recorder(probes, replace)
        read = {name: self.read(name, array) for name, array in inputs.items()}
        return self.evaluate(recorder.see, **read), recorder.seen

    def read(self, name: str, array: Array) -> Any:
        """Take settings and numbers out of their arrays; cast what the networks compute with."""
        if name == "config":
            return json.loads(array.item())
        if name in SCALARS:
            return array.item()
        return array.astype(self.dtype) if array.dtype.kind == "f" else array


class Port:
    """Every component, in float32 and float64."""

    def hello(self) -> dict[str, Any]:
        """Say what is offered."""
        schedulers = [f"scheduler/{name}" for name in SCHEDULERS]
        return {
            "name": "numpy",
            "version": "1.0",
            "components": ["tokenizer", *NETWORKS, *schedulers, *TASKS],
            "arithmetics": ["float32", "float64"],
            "details": {"numpy": np.__version__},
        }

    def load(
        self,
        component: str,
        variant: Any,
        weights: Any,
        arithmetic: str,
        device: str,  # noqa: ARG002 - there is but one
    ) -> Component:
        """Load a component.

        Args:
            component: One of those offered.
            variant: `architecture(component)` returns the sizes of a network.
            weights: By name, float32; `part(folder)` returns a folder of a whole checkpoint.
            arithmetic: `float32` or `float64`; whatever it is called where nothing is computed.
            device: `cpu`.
        """

        def network(name: str, own: Mapping[str, Array]) -> Network:
            return Network(NETWORKS[name], own, variant.architecture(name))

        def cast(own: Mapping[str, Array]) -> dict[str, Array]:
            return {name: own[name].astype(arithmetic, copy=False) for name in own}

        evaluate: Callable[..., Arrays]
        if component in NETWORKS:
            evaluate = network(component, cast(weights))
        elif component == "tokenizer":
            evaluate = partial(tokenize, Tokenizer())
        elif component in TASKS:
            vae = cast(weights.part("vae"))
            pipeline = Pipeline(
                Tokenizer(),
                network("text_encoder", cast(weights.part("text_encoder"))),
                network("unet", cast(weights.part("unet"))),
                network("vae_encoder", vae),
                network("vae_decoder", vae),
            )
            evaluate = partial(TASKS[component], pipeline)
        else:
            evaluate = partial(schedule, component.removeprefix("scheduler/"))
        return Component(evaluate, arithmetic)


def factory() -> Port:
    """Return the port."""
    return Port()
