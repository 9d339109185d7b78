"""Networks that are written with CompVis' names."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

from conformance import spec
from conformance.adapters.rename import table_of
from conformance.adapters.sd1_impl_networks import NETWORKS
from conformance.adapters.torch_module import Rename, TorchPort
from conformance.case import find_case
from conformance.execution import Execution
from conformance.runner import Runner
from conformance.traces import have_oracle
from sd1_impl.attention import SpatialTransformer
from sd1_impl.config import UNetConfig


def judge(mine, component, mode="trace"):
    """Judge a network of a port in one mode."""
    if mode == "splice" and not have_oracle():
        pytest.skip("splice mode needs the oracle")
    runner = Runner(mine)
    runner.asks_for_age = False
    return runner.run(find_case(f"{component}/tiny/base"), Execution(mode=mode))


def port(component, build, rules, call=None):
    """Return a port of one network, which is called as sd1_impl's is."""
    pair = (build, call or NETWORKS[component][1])
    return TorchPort("mine", "1", {component: pair}, rename={component: rules} if rules else {})


def test_text_encoder_with_prefix_and_buffer():
    """The text encoder's names differ by their prefix; the ids of positions are no weight."""
    table = table_of("compvis", "text_encoder")
    for start in ("", "transformer.", "cond_stage_model.transformer."):
        name = "text_model.embeddings.token_embedding.weight"
        assert table.translate(start + name).names == (name,)
        assert table.translate(f"{start}text_model.embeddings.position_ids").names == ()


def test_block_with_relative_names():
    """The names of a block alone are relative to it, in either spelling."""
    table = table_of("compvis", "block/down_blocks.0.resnets.0")
    assert table.translate("emb_layers.1.bias").names == ("time_emb_proj.bias",)
    assert table_of("compvis", "block/time_embedding").translate("0.bias").names == (
        "linear_1.bias",
    )


# --- The networks of the CompVis code -----------------------------------------------------------


class ResBlock(nn.Module):
    """`ResBlock` of openaimodel.py."""

    def __init__(self, groups, time, width_in, width):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, width_in), nn.SiLU(), nn.Conv2d(width_in, width, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, width))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Dropout(0),
            nn.Conv2d(width, width, 3, padding=1),
        )
        same = width == width_in
        self.skip_connection = nn.Identity() if same else nn.Conv2d(width_in, width, 1)

    def forward(self, x, time, _):
        """Compute."""
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Transformer(SpatialTransformer):
    """The transformer, whose names are the same, called as the others."""

    def forward(self, x, _, context):
        """Compute."""
        return super().forward(x, context)


class Sampler(nn.Module):
    """`Downsample` (its convolution is called op) or `Upsample` of openaimodel.py."""

    def __init__(self, width, *, up):
        super().__init__()
        self.up = up
        self.add_module("conv" if up else "op", nn.Conv2d(width, width, 3, 1 if up else 2, 1))

    def forward(self, x, *_):
        """Compute."""
        return self.conv(F.interpolate(x, scale_factor=2)) if self.up else self.op(x)


class Steps(nn.Sequential):
    """`TimestepEmbedSequential`."""

    def forward(self, x, time, context):
        """Compute."""
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, time, context)
        return x


class CompVisUNet(nn.Module):
    """`UNetModel` of openaimodel.py."""

    def __init__(self, sizes):
        super().__init__()
        config = UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})
        widths, heads, groups = config.block_out_channels, config.num_heads, config.norm_num_groups
        first, levels = widths[0], len(widths)
        self.width = first
        self.time_embed = nn.Sequential(
            nn.Linear(first, 4 * first), nn.SiLU(), nn.Linear(4 * first, 4 * first)
        )
        res = lambda a, b: ResBlock(groups, 4 * first, a, b)  # noqa: E731
        blocks = [Steps(nn.Conv2d(config.in_channels, first, 3, padding=1))]
        skips, width = [first], first
        for level, wide in enumerate(widths):
            for _ in range(config.layers_per_block):
                attention = [Transformer(config, wide, heads[level])] if level < levels - 1 else []
                blocks.append(Steps(res(width, wide), *attention))
                width = wide
                skips.append(wide)
            if level < levels - 1:
                blocks.append(Steps(Sampler(wide, up=False)))
                skips.append(wide)
        self.input_blocks = nn.ModuleList(blocks)
        attention = Transformer(config, width, heads[-1])
        self.middle_block = Steps(res(width, width), attention, res(width, width))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(levels)):
            wide = widths[level]
            for i in range(config.layers_per_block + 1):
                layers = [res(width + skips.pop(), wide)]
                layers += [Transformer(config, wide, heads[level])] if level < levels - 1 else []
                last = i == config.layers_per_block and level > 0
                self.output_blocks.append(Steps(*layers, *([Sampler(wide, up=True)] * last)))
                width = wide
        self.out = nn.Sequential(
            nn.GroupNorm(groups, first),
            nn.SiLU(),
            nn.Conv2d(first, config.out_channels, 3, padding=1),
        )

    def forward(self, x, timesteps, context):
        """Compute."""
        times = timesteps.expand(len(x)).to(torch.promote_types(x.dtype, torch.float32))
        half = self.width // 2
        k = torch.arange(half, dtype=times.dtype)
        angles = times[:, None] * torch.exp(-np.log(10000) * k / half)
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        kept = []
        for block in self.input_blocks:
            x = block(x, time, context)
            kept.append(x)
        x = self.middle_block(x, time, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], 1), time, context)
        return self.out(x)


class VaeBlock(nn.Module):
    """`ResnetBlock` of model.py."""

    def __init__(self, groups, width_in, width):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if width != width_in:
            self.nin_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x):
        """Compute."""
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """`AttnBlock` of model.py: 1x1 convolutions on maps."""

    def __init__(self, groups, width):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        """Compute."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(attended.mT.reshape(x.shape))


class CompVisDecoder(nn.Module):
    """`Decoder` of model.py: its levels are numbered from the image."""

    def __init__(self, sizes):
        super().__init__()
        widths, groups = sizes["block_out_channels"], sizes["norm_num_groups"]
        width = widths[-1]
        self.conv_in = nn.Conv2d(sizes["latent_channels"], width, 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = VaeBlock(groups, width, width)
        self.mid.attn_1 = AttnBlock(groups, width)
        self.mid.block_2 = VaeBlock(groups, width, width)
        self.up = nn.ModuleList()
        for i, wide in reversed(list(enumerate(widths))):
            level = nn.Module()
            level.block = nn.ModuleList()
            for _ in range(sizes["layers_per_block"] + 1):
                level.block.append(VaeBlock(groups, width, wide))
                width = wide
            if i > 0:
                level.upsample = Sampler(wide, up=True)
            self.up.insert(0, level)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, sizes["out_channels"], 3, padding=1)

    def forward(self, z):
        """Compute."""
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))
        for level in reversed(self.up):
            for block in level.block:
                h = block(h)
            h = level.upsample(h) if hasattr(level, "upsample") else h
        return self.conv_out(F.silu(self.norm_out(h)))


class CompVisVae(nn.Module):
    """The decoding half of `AutoencoderKL` of autoencoder.py."""

    def __init__(self, sizes):
        super().__init__()
        self.decoder = CompVisDecoder(sizes)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def decode(self, latents):
        """Compute."""
        return self.decoder(self.post_quant_conv(latents / 0.18215))


COMPVIS = {"unet": CompVisUNet, "vae_decoder": CompVisVae}


def written(component):
    """Return what builds a network of the CompVis code."""

    def build(variant):
        with torch.device("meta"):
            return COMPVIS[component](variant.architecture(component))

    return build


UNMAPPED = {
    "unet": "9 of 624: time_proj, down_blocks.*, up_blocks.*",
    "vae_decoder": "5 of 95: decoder.mid_block, decoder.up_blocks.*",
}


@pytest.mark.parametrize("mode", ["trace", "splice"])
@pytest.mark.parametrize("component", COMPVIS)
def test_compvis_names_conform(component, mode):
    """A network with CompVis' modules is loaded strictly and judged at nearly every probe."""
    mine = port(component, written(component), "compvis")
    result = judge(mine, component, mode)
    assert (result.verdict, result.message) == ("pass", "")
    assert mine.hello().details == {f"unmapped probes of {component}": UNMAPPED[component]}
    missing = mine.unmapped(component)
    seen = {record.name for record in result.records if record.kind == "probe"}
    assert seen == set(spec.probe_names(component, "tiny")) - set(missing)


def exchanged(start, values, end):
    """Return a row that exchanges two numbers in a name."""
    one, other = values
    return Rename(
        rf"^({start})\.({one}|{other})\.({end})",
        lambda m: f"{m[1]}.{other if int(m[2]) == one else one}.{m[3]}",
    )


SAME_SHAPES = {
    "levels": (exchanged(r"decoder\.up_blocks", (0, 1), r"resnets\.2"), "trace"),
    "layers": (exchanged(r"decoder\.up_blocks\.0\.resnets", (1, 2), ""), "trace"),
    "layers-spliced": (exchanged(r"decoder\.up_blocks\.0\.resnets", (1, 2), ""), "splice"),
}


@pytest.mark.parametrize(("row", "mode"), SAME_SHAPES.values(), ids=SAME_SHAPES)
def test_same_shapes_exchanged(row, mode):
    """A table that exchanges layers of one shape is found by what they compute."""
    result = judge(
        port("vae_decoder", written("vae_decoder"), ["compvis", row]), "vae_decoder", mode
    )
    assert result.verdict == "fail"
    assert result.first_divergence["probe"].startswith("decoder.up_blocks.0.resnets.")


def test_two_shapes_exchanged():
    """A table that exchanges layers of other shapes is refused, with the first shapes."""
    rules = ["compvis", exchanged("down_blocks", (0, 1), r"resnets\.1")]
    result = judge(port("unet", written("unet"), rules), "unet")
    assert result.verdict == "error"
    assert result.message == (
        "20 of 686 weights do not fit (input_blocks.2.0.in_layers.0.weight has shape (32,), its "
        "weight is down_blocks.1.resnets.1.norm1.weight (64,), "
        "input_blocks.2.0.in_layers.0.bias has shape (32,), its weight is "
        "down_blocks.1.resnets.1.norm1.bias (64,), input_blocks.2.0.in_layers.2.weight has shape "
        "(32, 32, 3, 3), its weight is down_blocks.1.resnets.1.conv1.weight (64, 64, 3, 3), ...)"
    )
