"""Stable Diffusion v1 in onnxruntime: each network exported from torch, run by the CPU provider."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx_export import GIVEN, OPSET, Call, Graph, Input, export
from torch import Tensor, nn

from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL

SESSIONS = 2
"""Sessions kept of a network: the plain one, and one that shows. Each has a copy of the weights."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """How a network is built and called.

    Attributes:
        build: Makes it, given its sizes.
        call: Turns it and its inputs into named outputs.
        inputs: What it is given, by its sizes.
    """

    build: Callable[[dict[str, Any]], nn.Module]
    call: Call
    inputs: Callable[[dict[str, Any]], dict[str, Input]]


def _text_encoder(sizes: dict[str, Any]) -> nn.Module:
    return CLIPTextEncoder(TextEncoderConfig(**sizes))


def _encode_text(net: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    last_hidden_state, pooler_output = net(input_ids)
    return {"last_hidden_state": last_hidden_state, "pooler_output": pooler_output}


def _text_inputs(sizes: dict[str, Any]) -> dict[str, Input]:
    return {"input_ids": Input(("B", sizes["max_position_embeddings"]), torch.int64)}


def _unet(sizes: dict[str, Any]) -> nn.Module:
    return UNet(UNetConfig(**sizes))


def _denoise(net: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    return {"sample": net(*inputs)}


def _unet_inputs(sizes: dict[str, Any]) -> dict[str, Input]:
    return {
        "sample": Input(("B", sizes["in_channels"], "H", "W")),
        "timestep": Input(("B",), torch.float32),
        "encoder_hidden_states": Input(("B", "L", sizes["cross_attention_dim"])),
    }


def _vae_encoder(sizes: dict[str, Any]) -> nn.Module:
    vae = AutoencoderKL(VAEConfig(**sizes))
    del vae.decoder, vae.post_quant_conv
    return vae


def _encode_image(net: Any, image: Tensor, noise: Tensor) -> dict[str, Tensor]:
    posterior = net.encode(image)
    latents = net.sample_latents(posterior, noise)
    return {"mean": posterior.mean, "logvar": posterior.logvar, "latents": latents}


def _image_inputs(sizes: dict[str, Any]) -> dict[str, Input]:
    return {
        "image": Input(("B", sizes["in_channels"], "H", "W")),
        "noise": Input(("B", sizes["latent_channels"], "h", "w")),
    }


def _vae_decoder(sizes: dict[str, Any]) -> nn.Module:
    vae = AutoencoderKL(VAEConfig(**sizes))
    del vae.encoder, vae.quant_conv
    return vae


def _decode_latents(net: Any, latents: Tensor) -> dict[str, Tensor]:
    return {"image": net.decode(latents)}


def _latent_inputs(sizes: dict[str, Any]) -> dict[str, Input]:
    return {"latents": Input(("B", sizes["latent_channels"], "h", "w"))}


NETWORKS = {
    "text_encoder": Network(_text_encoder, _encode_text, _text_inputs),
    "unet": Network(_unet, _denoise, _unet_inputs),
    "vae_encoder": Network(_vae_encoder, _encode_image, _image_inputs),
    "vae_decoder": Network(_vae_decoder, _decode_latents, _latent_inputs),
}


def factory() -> Port:
    """Return the port: what `sd1-conformance run port.py:factory` judges."""
    return Port()


@dataclass
class Port:
    """Four networks.

    Attributes:
        networks: How each is built and called, by component.
        graphs: What was exported so far: one graph serves all weights of an architecture.
    """

    networks: Mapping[str, Network] = field(default_factory=lambda: NETWORKS)
    graphs: dict[str, Graph] = field(default_factory=dict)

    def hello(self) -> dict[str, Any]:
        """Say what is offered."""
        return {
            "name": "onnxruntime",
            "version": onnxruntime.__version__,
            "components": [*self.networks],
            "arithmetics": ["float32", "float16"],
            "details": {
                "onnxruntime": onnxruntime.__version__,
                "provider": "CPUExecutionProvider",
                "onnx": onnx.__version__,
                "opset": str(OPSET),
                "exporter": f"torch {torch.__version__}",
                "float16": "weights and values that are stored; the provider computes in float32",
            },
        }

    def load(
        self,
        component: str,
        variant: Any,
        weights: Mapping[str, np.ndarray],
        arithmetic: str,
        device: str,  # noqa: ARG002 - "cpu" is all that is offered
    ) -> Loaded:
        """Export the network, unless that was done, and keep the weights for its sessions."""
        graph = self._graph(component, variant.architecture(component), arithmetic)
        missing = sorted(set(graph.weights.values()) - set(weights))
        if missing:  # the checkpoint of a VAE may hold more: both its halves
            raise ValueError(f"weights are missing: {', '.join(missing[:6])}")
        own = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(weights[key].astype(arithmetic))
            for name, key in graph.weights.items()
        }
        return Loaded(graph, own)

    def _graph(self, component: str, sizes: dict[str, Any], arithmetic: str) -> Graph:
        key = f"{component} {arithmetic} {sizes}"
        if key not in self.graphs:
            network = self.networks[component]
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
            with torch.device("meta"):
                net = network.build(fields)
            net = net.to(getattr(torch, arithmetic)).to_empty(device="cpu")
            self.graphs[key] = export(net, network.call, network.inputs(fields))
        return self.graphs[key]


@dataclass
class Loaded:
    """A network with its weights.

    Attributes:
        graph: The network.
        weights: By their names in the graph.
        sessions: By the values that are seen and given; the last `SESSIONS` of them. The plain one
            is optimized as in use; a value that is seen cannot be fused away.
    """

    graph: Graph
    weights: dict[str, onnxruntime.OrtValue]
    sessions: dict[Any, onnxruntime.InferenceSession] = field(default_factory=dict)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate the network once; what is to be seen and given decides which session does it."""
        names, dtypes = self.graph.values, self.graph.dtypes
        given = {
            probe: replace[probe].astype(dtypes[value])
            for probe, value in names.items()
            if replace and probe in replace
        }
        seen = frozenset(value for probe, value in names.items() if probe in probes)
        taken = {names[probe]: array for probe, array in given.items()}
        feed = {name: array.astype(dtypes[name]) for name, array in inputs.items()}
        if "timestep" in feed:
            feed["timestep"] = np.broadcast_to(feed["timestep"], len(feed["sample"]))
        feed |= {value + GIVEN: array for value, array in taken.items()}

        session = self._session(seen, frozenset(taken))
        made = [output.name for output in session.get_outputs()]
        now = dict(zip(made, session.run(made, feed), strict=True))
        observed: Arrays = {}
        for probe, value in names.items():  # modules that share a value: each is given it in turn
            if probe in probes:
                observed[probe] = now[value]
            if probe in given:
                now[value] = given[probe]
        return {name: now[value] for name, value in self.graph.outputs.items()}, observed

    def _session(self, seen: frozenset[str], given: frozenset[str]) -> onnxruntime.InferenceSession:
        if (seen, given) not in self.sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: all
            options.add_external_initializers([*self.weights], [*self.weights.values()])
            model = self.graph.session_model(seen, given).SerializeToString()
            while len(self.sessions) >= SESSIONS:
                del self.sessions[next(iter(self.sessions))]
            self.sessions[seen, given] = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        return self.sessions[seen, given]
