"""What the comparisons with the references share."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sd1_impl import Text2Image, synthetic_pipeline
from sd1_impl.tokenizer import MERGES_FILE


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a second thread, which here is another worker's core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def _calls(model: nn.Module) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    record: list[tuple[str, Tensor, Tensor]] = []

    def hook(path: str) -> Callable:
        def note(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            out = output if isinstance(output, Tensor) else output[0]
            record.append((path, first.clone(), out.clone()))

        return note

    handles = [
        module.register_forward_hook(hook(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path and (path == "time_proj" or any(True for _ in module.parameters()))
    ]
    yield record
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="session")
def calls() -> Callable:
    """Collect (path, first input, first output) of modules with parameters and `time_proj`."""
    return _calls


@pytest.fixture(scope="session")
def randomise() -> Callable:
    """Move every parameter of a model at random, far enough to matter everywhere."""

    def move(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise.to(parameter.dtype))
        return model

    return move


@pytest.fixture(scope="session")
def their_tokenizer():
    """Transformers' tokenizer, as the published checkpoint of SD v1 configures it."""
    transformers = pytest.importorskip("transformers")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(x + "</w>" for x in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@pytest.fixture(scope="session")
def tiny() -> Text2Image:
    """A small pipeline with random weights; not to be changed."""
    return synthetic_pipeline("tiny")


@pytest.fixture(scope="session")
def published_configs() -> dict[str, dict]:
    """The JSON files of the published SD v1-5, by path."""
    return json.loads(Path(__file__).with_name("published_configs.json").read_text())


@pytest.fixture(scope="session")
def weights_folder(tiny: Text2Image, published_configs: dict, tmp_path_factory) -> Path:
    """The small pipeline in the published layout, with its old names; not to be changed."""
    folder = tmp_path_factory.mktemp("weights")
    widths = {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 8}
    changes = {
        "unet/config.json": widths | {"cross_attention_dim": 64},
        "vae/config.json": widths,
        "text_encoder/config.json": {
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    }
    for name, config in published_configs.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(config | changes.get(name, {})))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = tiny.vae.state_dict()
    for new, name in old.items():
        vae = {key.replace(f".{new}.", f".{name}."): vae[key] for key in vae}
    text = tiny.text_encoder.state_dict()
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tiny.unet.state_dict(), folder / "unet/diffusion_pytorch_model.safetensors")
    save_file(vae, folder / "vae/diffusion_pytorch_model.safetensors")
    save_file(text, folder / "text_encoder/model.safetensors")
    return folder
