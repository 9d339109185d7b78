"""What saves memory: the autoencoder by sample and by tile, against diffusers' own; the switches.

Tiles here are 8 latents with an overlap of 2, which is a quarter, as in SD v1.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd1_impl import SD_V1_UNET, SD_V1_VAE, AutoencoderKL, CLIPTextEncoder, UNet
from sd1_impl.__main__ import main
from sd1_impl.config import TextEncoderConfig
from sd1_impl.savings import SAVINGS, use_saving
from sd1_impl.tiling import Tiling, by_tile

VAE = replace(SD_V1_VAE, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4)
SMALL = Tiling(size=8, overlap=2)
ROUNDING = 64 * torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def both(randomise) -> tuple:
    """Our autoencoder and diffusers', of the same weights in float64."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=VAE.block_out_channels,
        layers_per_block=VAE.layers_per_block,
        norm_num_groups=VAE.norm_num_groups,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        sample_size=8 * SMALL.size,
    )
    theirs = randomise(theirs.double()).eval()
    ours = AutoencoderKL(VAE).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture
def tiled(both: tuple) -> Iterator[tuple]:
    """Both, tiled; and back."""
    ours, theirs = both
    ours.tiling = SMALL
    theirs.enable_tiling()
    yield ours, theirs
    ours.tiling = None
    theirs.disable_tiling()


@pytest.fixture
def vae(both: tuple) -> Iterator[AutoencoderKL]:
    """Ours, and afterwards nothing is switched on."""
    ours, _ = both
    yield ours
    for name in ("by_sample", "tiling"):
        vars(ours).pop(name, None)


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return numbers in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return (2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1).to(dtype)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 distance, of tensors of the same shape."""
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm())


# Whole tiles; beginnings of tiles; a tile that begins in another's overlap; one row of tiles.
SIZES = [(14, 20), (11, 17), (9, 7), (3, 13), (8, 14)]


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@torch.no_grad()
def test_tiled_decoding_is_diffusers(tiled: tuple, size: tuple[int, int]):
    """Of any size: the same tiles, blended alike; which is not the picture decoded at once."""
    ours, theirs = tiled
    latents = drawn(2, 4, *size)
    got = ours.decode(latents)
    assert relative_error(got, theirs.decode(latents / 0.18215).sample) < ROUNDING
    ours.tiling = None
    assert relative_error(got, ours.decode(latents)) > 0.01


@pytest.mark.parametrize("rest", [(0, 0), (5, 3), (0, 7)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@torch.no_grad()
def test_tiled_encoding_is_diffusers(tiled: tuple, size: tuple[int, int], rest: tuple[int, int]):
    """Of any size, also where 8 does not divide it: the same mean and log-variance."""
    ours, theirs = tiled
    image = drawn(2, 3, *(8 * latents + more for latents, more in zip(size, rest, strict=True)))
    got, wanted = ours.encode(image), theirs.encode(image).latent_dist
    assert relative_error(got.mean, wanted.mean) < ROUNDING
    assert relative_error(got.logvar, wanted.logvar) < ROUNDING


@torch.no_grad()
def test_what_fits_into_a_tile_is_not_cut(vae: AutoencoderKL):
    """Up to the size of a tile both ways are the plain ones, to the bit."""
    latents, image = drawn(1, 4, 8, 5), drawn(1, 3, 64, 60)
    wanted = vae.decode(latents), vae.encode(image).mean
    vae.tiling = SMALL
    assert torch.equal(vae.decode(latents), wanted[0])
    assert torch.equal(vae.encode(image).mean, wanted[1])


@torch.no_grad()
def test_a_tile_of_less_than_a_latent_is_none(tiled: tuple):
    """Pixels too few for a latent get no tile of their own, of which diffusers fails."""
    ours, theirs = tiled
    image = drawn(1, 3, 8 * 12 + 4, 64)
    with pytest.raises(RuntimeError, match="Kernel size"):
        theirs.encode(image)
    assert ours.encode(image).mean.shape == (1, 4, 12, 8)


@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_tiles_of_a_whole_are_the_whole(overlap: int):
    """Where a tile depends on its own pixels alone, nothing is left out, moved or doubled."""
    whole = drawn(2, 3, 21, 30)
    tiling = Tiling(8, overlap)
    got = by_tile(torch.clone, whole, tiling, reads=1, writes=1)
    torch.testing.assert_close(got, whole, rtol=1e-14, atol=1e-14)
    assert torch.equal(whole, drawn(2, 3, 21, 30))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_stay_halves(dtype: torch.dtype):
    """Blending keeps the dtype."""
    whole = drawn(1, 3, 21, 30, dtype=dtype)
    got = by_tile(torch.clone, whole, SMALL, reads=1, writes=1)
    torch.testing.assert_close(got, whole)


def test_gradients_pass_through_tiles():
    """They are those of finite differences."""
    whole = drawn(1, 2, 7, 9).requires_grad_()
    tiling = Tiling(4, 1)
    assert torch.autograd.gradcheck(
        lambda x: by_tile(lambda tile: tile**3, x, tiling, reads=1, writes=1), whole
    )


@pytest.mark.parametrize(("size", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_tiles_lead_somewhere(size: int, overlap: int):
    """An overlap is at most a tile less one latent."""
    with pytest.raises(ValueError, match=f"overlap is {overlap}, expected 0 to {size - 1}"):
        Tiling(size, overlap)


def test_tiling_is_the_published(published_configs: dict):
    """The checkpoint's sample size, in latents; and diffusers' overlap."""
    assert (
        Tiling().size * VAE.downsampling_factor
        == published_configs["vae/config.json"]["sample_size"]
    )
    theirs = pytest.importorskip("diffusers").AutoencoderKL()
    assert Tiling().overlap == theirs.tile_overlap_factor * Tiling().size


class Peak(TorchDispatchMode):
    """The most bytes that the tensors made meanwhile hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: WeakKeyDictionary = WeakKeyDictionary()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and note what it returns."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage] = storage.nbytes()
        self.bytes = max(self.bytes, sum(self.alive.values()))
        return out


@pytest.mark.parametrize(("saving", "place"), [(None, 1), ("tiled", 0)])
@torch.no_grad()
def test_a_large_picture_takes_what_the_help_says(capsys, saving: str | None, place: int):
    """1024x1024 at SD v1's size in float32, predicted: nothing is computed."""
    with pytest.raises(SystemExit):
        main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    said = re.search(r"takes (\S+) GiB beside the weights, not (\S+) ", words).groups()
    with FakeTensorMode():
        vae = AutoencoderKL(SD_V1_VAE)
        if saving:
            use_saving(vae, saving)
        latents = torch.empty(1, 4, 128, 128)
        with Peak() as peak:
            vae.decode(latents)
    assert f"{peak.bytes / 2**30:.1f}" == said[place]


@torch.no_grad()
def test_by_sample(vae: AutoencoderKL):
    """The networks see one sample at a time; the numbers are those of the batch."""
    latents, image = drawn(3, 4, 5, 4), drawn(3, 3, 40, 32)
    wanted = vae.decode(latents), vae.encode(image)
    vae.by_sample = True
    seen = []
    handles = [
        half.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        for half in (vae.encoder, vae.decoder)
    ]
    got = vae.decode(latents), vae.encode(image)
    for handle in handles:
        handle.remove()
    assert seen == [1] * 6
    assert relative_error(got[0], wanted[0]) < ROUNDING
    assert relative_error(got[1].mean, wanted[1].mean) < ROUNDING
    assert relative_error(got[1].logvar, wanted[1].logvar) < ROUNDING


@torch.no_grad()
def test_by_sample_in_tiles(vae: AutoencoderKL):
    """Both at once: a tile of a sample."""
    latents = drawn(2, 4, 9, 11)
    vae.tiling = SMALL
    wanted = vae.decode(latents)
    vae.by_sample = True
    sizes = set()
    handle = vae.decoder.register_forward_pre_hook(
        lambda _, inputs: sizes.add(tuple(inputs[0].shape))
    )
    got = vae.decode(latents)
    handle.remove()
    assert sizes == {(1, 4, height, width) for height in (8, 3) for width in (8, 5)}
    assert relative_error(got, wanted) < ROUNDING


@pytest.mark.parametrize(
    ("build", "places"),
    [
        (lambda: UNet(SD_V1_UNET), {"by_sample": 0, "tiled": 0, "recompute": 38}),
        (lambda: AutoencoderKL(SD_V1_VAE), {"by_sample": 1, "tiled": 1, "recompute": 10}),
        (
            lambda: CLIPTextEncoder(TextEncoderConfig()),
            {"by_sample": 0, "tiled": 0, "recompute": 12},
        ),
    ],
    ids=["unet", "vae", "text-encoder"],
)
def test_switches(build, places: dict[str, int]):
    """A network says in how many places it saves as it is told: 0 if it cannot."""
    with torch.device("meta"):
        network = build()
    assert {name: use_saving(network, name) for name in SAVINGS} == places
    if places["tiled"]:
        assert network.by_sample
        assert network.tiling == Tiling()
