"""Cross-check with the peer: diffusers and transformers read what we write, and we what they do.

Each loaded network is judged against its goldens, in noise units.
"""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from conformance import cli
from conformance.adapters import diffusers_networks, sd1_impl_networks
from conformance.adapters.torch_module import TorchComponent
from conformance.case import NETWORKS, find_case
from conformance.execution import Execution
from conformance.port import Hello
from conformance.runner import Runner
from sd1_impl import load_pipeline

PARTS = {"vae_encoder": "vae", "vae_decoder": "vae"}


class Loaded:
    """A port of networks that were loaded from files before, whatever weights it is handed."""

    def __init__(self, pipeline, adapter):
        self.pipeline = pipeline
        self.calls = {name: call for name, (_, call) in adapter.NETWORKS.items()}
        self.prefixed = getattr(adapter, "prefixed", lambda module: module)

    def hello(self):
        """Offer the networks."""
        return Hello("loaded", "1", NETWORKS)

    def load(self, component, _variant, _weights, _arithmetic, _device):
        """Return the network of the files."""
        module = getattr(self.pipeline, PARTS.get(component, component)).eval()
        if component == "text_encoder":
            module = self.prefixed(module)
        return TorchComponent(module, self.calls[component], torch.float32)


def judged(pipeline, adapter):
    """Return the worst ratio of every network, each judged in a trace at all of its probes."""
    runner = Runner(Loaded(pipeline, adapter))
    runner.asks_for_age = False
    worst = {}
    for component in NETWORKS:
        result = runner.run(find_case(f"{component}/tiny/base"), Execution(mode="trace"))
        assert (result.verdict, result.message) == ("pass", "")
        worst[component] = result.worst.ratio
    return worst


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The tiny variant in every layout that we write."""
    out = tmp_path_factory.mktemp("written")
    for layout, name in (
        ("diffusers", "folder"),
        ("compvis", "a.safetensors"),
        ("compvis", "a.ckpt"),
    ):
        arguments = ["--variant", "tiny", "--layout", layout, "--out", str(out / name)]
        assert cli.main(["weights", "export", *arguments]) == 0
    return out


def their_single_file(path: Path, config: Path):
    """Load a single file with diffusers, offline."""
    return diffusers.StableDiffusionPipeline.from_single_file(
        path, config=str(config), local_files_only=True, safety_checker=None
    )


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_single_file_is_read_by_diffusers(written: Path, name: str) -> None:
    """Their single-file loader fills every weight, and computes what SD v1 computes."""
    theirs = their_single_file(written / name, written / "folder")
    assert max(judged(theirs, diffusers_networks).values()) < 2
    assert type(theirs.scheduler).__name__ == "PNDMScheduler"


def test_folder_is_read_by_diffusers(written: Path) -> None:
    """`from_pretrained` takes our folder; tokenizer and scheduler are SD v1's."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        written / "folder", local_files_only=True
    )
    assert max(judged(theirs, diffusers_networks).values()) < 2
    text = "a photograph of an astronaut riding a horse"
    ours = load_pipeline(written / "folder")
    ids = theirs.tokenizer(text, padding="max_length").input_ids
    assert ids == ours.tokenizer(text)[0].tolist()
    assert theirs.scheduler.config.steps_offset == 1
    assert not theirs.scheduler.config.set_alpha_to_one


def test_folder_of_diffusers_is_read(written: Path, tmp_path: Path) -> None:
    """What diffusers and transformers save is loaded, and computes what SD v1 computes."""
    theirs = their_single_file(written / "a.safetensors", written / "folder")
    theirs.save_pretrained(tmp_path / "theirs")
    pipeline = load_pipeline(tmp_path / "theirs")
    assert max(judged(pipeline, sd1_impl_networks).values()) < 2


def test_half_precision_folder_of_diffusers_is_read(written: Path, tmp_path: Path) -> None:
    """Of a folder saved with `variant="fp16"` the values are theirs, bit for bit."""
    theirs = their_single_file(written / "a.safetensors", written / "folder").to(torch.float16)
    theirs.save_pretrained(tmp_path / "theirs", variant="fp16")
    names = [path.name for path in (tmp_path / "theirs" / "unet").iterdir()]
    assert "diffusion_pytorch_model.fp16.safetensors" in names
    for files in ("", "fp16"):
        ours = load_pipeline(tmp_path / "theirs", files=files, dtype=None)
        assert all(
            torch.equal(tensor, theirs.unet.state_dict()[name])
            for name, tensor in ours.unet.state_dict().items()
        )


def test_bin_files_of_diffusers_are_read(written: Path, tmp_path: Path) -> None:
    """A folder of pickled files, as `safe_serialization=False` writes them."""
    theirs = their_single_file(written / "a.safetensors", written / "folder")
    theirs.unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    theirs.vae.save_pretrained(tmp_path / "vae", safe_serialization=False)
    text = theirs.text_encoder
    (tmp_path / "text_encoder").mkdir()
    torch.save(text.state_dict(), tmp_path / "text_encoder" / "pytorch_model.bin")
    text.config.to_json_file(tmp_path / "text_encoder" / "config.json")
    ours = load_pipeline(tmp_path)
    assert max(judged(ours, sd1_impl_networks).values()) < 2
