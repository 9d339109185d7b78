"""TorchPort on networks with names and layouts of their own, and on broken ones."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

from conformance.adapters.sd1_impl_networks import NETWORKS, build_text_encoder
from conformance.adapters.torch_module import Rename, TorchPort
from conformance.case import find_case
from conformance.errors import PortError
from conformance.execution import Execution
from conformance.runner import Runner
from conformance.traces import have_oracle
from conformance.variants import parse_variant

TINY = parse_variant("tiny")


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


class Turned(nn.Module):
    """A linear layer whose weight is (in, out)."""

    def __init__(self, width_in, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x):
        """Compute."""
        return x @ self.weight + self.bias


class GptLayer(nn.Module):
    """A layer."""

    def __init__(self, width, inner, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = nn.ModuleDict(), nn.ModuleDict()
        self.attn.c_attn, self.attn.c_proj = Turned(width, 3 * width), Turned(width, width)
        self.mlp.a, self.mlp.b = Turned(width, inner // 2), Turned(width, inner // 2)
        self.mlp.c_proj = Turned(inner, width)

    def forward(self, x):
        """Compute."""
        parts = self.attn.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.attn.c_proj(attended)
        h = self.ln_2(x)
        h = torch.cat([self.mlp.a(h), self.mlp.b(h)], dim=-1)
        return x + self.mlp.c_proj(h * torch.sigmoid(1.702 * h))


class Gpt(nn.Module):
    """The network."""

    def __init__(self, sizes):
        super().__init__()
        width = sizes["hidden_size"]
        self.wte = nn.Embedding(sizes["vocab_size"], width)
        self.wpe = nn.Parameter(torch.empty(sizes["max_position_embeddings"], width))
        layer = (width, sizes["intermediate_size"], sizes["num_heads"])
        self.h = nn.ModuleList([GptLayer(*layer) for _ in range(sizes["num_layers"])])
        self.ln_f = nn.LayerNorm(width)

    def forward(self, ids):
        """Compute."""
        x = self.wte(ids) + self.wpe
        for layer in self.h:
            x = layer(x)
        x = self.ln_f(x)
        return x, x[torch.arange(len(ids)), (ids == 49407).int().argmax(-1)]


def gpt(variant):
    """Build it, with values of its own: not on the meta device."""
    return Gpt(variant.architecture("text_encoder"))


QKV = (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")
GPT = [
    Rename(r"^wte\b", "text_model.embeddings.token_embedding"),
    Rename(r"^wpe$", "text_model.embeddings.position_embedding.weight"),
    Rename(r"^ln_f\b", "text_model.final_layer_norm"),
    Rename(r"^h\.", "text_model.encoder.layers."),
    Rename(r"\.ln_(\d)", r".layer_norm\1"),
    Rename(r"\.attn\.c_attn\.", QKV),
    Rename(r"\.attn\.c_proj\b", ".self_attn.out_proj"),
    Rename(r"\.mlp\.a\b", ".mlp.fc1", part=(0, 2)),
    Rename(r"\.mlp\.b\b", ".mlp.fc1", part=(1, 2)),
    Rename(r"\.mlp\.c_proj\b", ".mlp.fc2"),
    Rename(r"\.(self_attn|mlp)\..*weight$", r"\g<0>", axes="i o -> o i"),
]


@pytest.mark.parametrize("mode", ["trace", "splice"])
def test_fused_transposed_and_split(mode):
    """One parameter for three, two for one, and transposed ones are filled; the rest is probed."""
    mine = port("text_encoder", gpt, GPT)
    result = judge(mine, "text_encoder", mode)
    assert (result.verdict, result.message) == ("pass", "")
    probes = {re.sub(r".*layers\.\d\.", "", r.name) for r in result.records if r.kind == "probe"}
    assert probes == {
        "text_model.embeddings.token_embedding",
        "layer_norm1",
        "self_attn.out_proj.input",
        "self_attn.out_proj",
        "layer_norm2.input",
        "layer_norm2",
        "mlp.fc2.input",
        "mlp.fc2",
        *(f"text_model.encoder.layers.{i}" for i in range(3)),
        "text_model.final_layer_norm",
    }


@pytest.mark.parametrize(
    ("row", "probe"),
    [
        (Rename(r"\.attn\.c_attn\.", QKV[::-1]), "self_attn.out_proj.input"),
        (Rename(r"\.mlp\.a\b", ".mlp.fc1", part=(1, 2)), "mlp.fc2.input"),
    ],
    ids=["order", "halves"],
)
def test_wrong_order_of_parts(row, probe):
    """Joined or split in the wrong order, every shape fits: the judge finds the layer."""
    rows = [row if r.pattern == row.pattern else r for r in GPT]
    if row.part != (0, 1):
        rows = [replace(r, part=(0, 2)) if r.pattern == r"\.mlp\.b\b" else r for r in rows]
    result = judge(port("text_encoder", gpt, rows), "text_encoder", "splice")
    assert result.verdict == "fail"
    assert result.first_divergence["probe"] == f"text_model.encoder.layers.0.{probe}"


# --- What does not fit ---------------------------------------------------------------------------


def built(change):
    """Return what builds sd1_impl's text encoder and changes it."""

    def build(variant):
        module = build_text_encoder(variant)
        return change(module) or module

    return build


def below_a_prefix(module):
    """Put a network into another."""
    outer = nn.Module()
    outer.net = module
    return outer


def with_position_ids(module, device="cpu"):
    """Add the buffer that older versions of transformers saved."""
    ids = torch.arange(77, device=device)[None]
    module.text_model.embeddings.register_buffer("position_ids", ids)


def spelt_otherwise(module):
    """Call the first norm's parameters what they are called elsewhere."""
    norm = module.text_model.encoder.layers[0].layer_norm1
    norm.gamma, norm.beta = norm.weight, norm.bias
    del norm.weight, norm.bias


def without_final_norm(module):
    """Take the last norm out."""
    del module.text_model.final_layer_norm


IDLE = "names do not fit: 1 of 12 rows match nothing, or nothing of as many axes "
MISFITS = {
    "prefix": (
        built(below_a_prefix),
        None,
        ("names do not fit: 52 of 52 parameters have no weight (net.text_model.embeddings.token_"
        "embedding.weight, ~, ~, ...); 52 of 52 weights have no parameter (text_model.~, ...); "
        "52 more would fit with the row Rename(r'^net\\.', '')"),
    ),
    "no-prefix": (
        built(lambda module: module.text_model),
        None,
        ("names do not fit: 52 of 52 parameters ~52 more would fit with the row "
        "Rename('^', 'text_model.')"),
    ),
    "spelling": (
        built(spelt_otherwise),
        None,
        ("names do not fit: 2 of 52 parameters have no weight (text_model.encoder.layers.0.layer_"
        "norm1.gamma, ~1 more would fit with the row Rename(r'\\.gamma$', '.weight')"),
    ),
    "older-buffer": (
        built(with_position_ids),
        None,
        "names do not fit: 1 of 53 parameters have no weight (text_model.embeddings.position_ids)",
    ),
    "no-parameter": (
        built(without_final_norm),
        "diffusers",
        ("names do not fit: 2 of 52 weights have no parameter "
        "(text_model.final_layer_norm.weight, text_model.final_layer_norm.bias)"),
    ),
    "typo": (gpt, [*GPT, Rename("ln_3", "")], f"{IDLE}(Rename('ln_3', ''))"),
    "typo-in-axes": (
        gpt,
        [*GPT, Rename("weight$", "weight", axes="h w i o -> o i h w")],
        f"{IDLE}(Rename('weight$', 'weight'))",
    ),
    "row-forgotten": (
        gpt,
        GPT[1:],
        ("names do not fit: 1 of 46 parameters have no weight (wte.weight); 1 of 52 weights have "
        "no parameter (text_model.embeddings.token_embedding.weight)"),
    ),
    "two-on-one": (
        gpt,
        [*GPT, Rename(r"layers\.1\.mlp\.fc2\.bias", "layers.0.mlp.fc2.bias")],
        ("names do not fit: 1 of 52 weights have no parameter (text_model.encoder.layers.1.mlp.fc2."
        "bias); 1 of 52 weights are not taken once, or in all their parts (text_model.encoder."
        "layers.0.mlp.fc2.bias for h.0.mlp.c_proj.bias and h.1.mlp.c_proj.bias)"),
    ),
    "half-missing": (
        gpt,
        [*GPT, Rename(r"^(.*layers\.2\.mlp\.fc1\..*)$", r"\1", part=(0, 2))],
        ("names do not fit: 2 of 52 weights are not taken once, or in all their parts (text_model."
        "encoder.layers.2.mlp.fc1.weight for h.2.mlp.a.weight and h.2.mlp.b.weight, ~)"),
    ),
    "not-transposed": (
        gpt,
        GPT[:-1],
        ("12 of 46 weights do not fit (h.0.attn.c_attn.weight has shape (64, 192), its weight is "
        "text_model.encoder.layers.0.self_attn.q_proj.weight (64, 64) + ~, ...)"),
    ),
    "no-values": (
        built(lambda module: with_position_ids(module, "meta")),
        "diffusers",
        ("1 of 53 tensors are on the meta device and no weight is theirs (text_model.embeddings."
        "position_ids): build them with their values, outside torch.device('meta')"),
    ),
    "no-module": (
        lambda _: None,
        None,
        "build of text_encoder returned NoneType, not a torch.nn.Module",
    ),
}  # fmt: skip
"""What is built, the table, and what is said of it; ~ stands for more."""


@pytest.mark.parametrize(("build", "rules", "message"), MISFITS.values(), ids=MISFITS)
def test_misfit_is_one_clear_line(build, rules, message):
    """What does not fit is counted, named and, where it can be, mended; nothing runs."""
    mine = port("text_encoder", build, rules)
    pattern = ".*".join(map(re.escape, message.split("~")))
    with pytest.raises(PortError, match=f"^{pattern}$"):
        mine.load("text_encoder", TINY, TINY.weights("text_encoder"), "float32", "cpu")
    if message.startswith("names"):
        assert not mine.hello().details, "what does not fit says so when it is loaded"


PAIR = (build_text_encoder, NETWORKS["text_encoder"][1])
BROKEN = {
    "no-pair": ({"unet": build_text_encoder}, {}, r"unet is <function .*, not a pair of functions"),
    "three": ({"unet": (*PAIR, 1)}, {}, "not a pair of functions"),
    "no-functions": ({"unet": (nn.Linear(1, 1), "call")}, {}, "not a pair of functions"),
    "no-network": ({"unett": PAIR}, {}, "'unett' is no network: choose from text_encoder, unet"),
    "no-such-table": ({"unet": PAIR}, {"vae": []}, "rename has 'vae', which is none of its networ"),
    "no-preset": (
        {"unet": PAIR},
        {"unet": "compviz"},
        "'compviz' is neither a Rename nor 'diffuse",
    ),
    "no-row": ({"unet": PAIR}, {"unet": [("a", "b")]}, r"\('a', 'b'\) is neither a Rename nor"),
    "no-table": ({"unet": PAIR}, {"unet": None}, "None is neither a Rename nor"),
}


@pytest.mark.parametrize(("builders", "rename", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_port_is_refused_when_made(builders, rename, message):
    """What no network can be built from is named before anything runs."""
    with pytest.raises(PortError, match=message):
        TorchPort("mine", "1", builders, rename=rename)


WRONG_ANSWERS = {
    "bare": (lambda _, __: torch.zeros(1), "returned Tensor, not"),
    "tuple": (lambda m, t: tuple(PAIR[1](m, t).values()), "returned tuple, not"),
    "arrays": (lambda _, __: {"pooler_output": np.zeros(1)}, "returned a dict of ndarray, not"),
}


@pytest.mark.parametrize(("call", "message"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_wrong_answer_says_what_to_write(call, message):
    """A call that returns no dict of tensors is an error that shows the dict."""
    result = judge(port("text_encoder", build_text_encoder, None, call), "text_encoder")
    assert result.verdict == "error"
    assert result.message == (
        f"the call of text_encoder {message} a dict of tensors: "
        'write {"last_hidden_state": ..., "pooler_output": ...}'
    )


def test_older_names_of_diffusers():
    """The preset knows what older versions called the VAE's attention; without it, a hint does."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "proj_attn"}

    def build(variant):
        module = NETWORKS["vae_decoder"][0](variant)
        attention = module.decoder.mid_block.attentions[0]
        attention.to_out = attention.to_out[0]
        for new, old in older.items():
            setattr(attention, old, getattr(attention, new))
            delattr(attention, new)
        return module

    mine = port("vae_decoder", build, "diffusers")
    assert mine.unmapped("vae_decoder") == []
    unnamed = port("vae_decoder", build, None)
    with pytest.raises(
        PortError, match=r"8 of 140 .* 8 more would fit with the preset 'diffusers'$"
    ):
        unnamed.load("vae_decoder", TINY, TINY.weights("vae_decoder"), "float32", "cpu")


def test_a_buffer_keeps_its_values():
    """What the table gives no weight stays as it was built, on its own dtype."""
    mine = port("text_encoder", built(with_position_ids), "diffusers")
    loaded = mine.load("text_encoder", TINY, TINY.weights("text_encoder"), "float16", "cpu")
    assert torch.equal(loaded.module.text_model.embeddings.position_ids[0], torch.arange(77))


BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = BLOCK.findall((Path(__file__).parents[2] / "docs/adapters.md").read_text("utf-8"))


@pytest.fixture(scope="module")
def examples():
    """Run the page from top to bottom; return its ports."""
    ports, names = [], {}
    for text in EXAMPLES:
        exec(compile(text, "docs/adapters.md", "exec"), names)  # noqa: S102 - what it is for
        ports += [names["factory"]()] if "def factory" in text else []
    return ports


@pytest.mark.parametrize("mode", ["trace", "splice"])
@pytest.mark.parametrize(("i", "probes"), [(0, 26), (1, 45)], ids=["torch", "numpy"])
def test_examples_of_the_page_conform(examples, i, probes, mode):
    """The two ports of docs/adapters.md conform, layer by layer."""
    result = judge(examples[i], "text_encoder", mode)
    assert (result.verdict, result.message) == ("pass", "")
    assert sum(record.kind == "probe" for record in result.records) == probes
