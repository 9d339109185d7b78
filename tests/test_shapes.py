"""The tensors of Stable Diffusion v1, by name and size, in tables. Start reading here.

A row says a tensor's size in the published model and in `tiny`, the same topology with narrow
layers; once, if they agree. A name is a module's path, as in the code and in the checkpoint, for
what it returns; `.input` is what it reads, `.attend` what attention is computed from. A name that
begins with a dot continues the last one that does not; `0..2` are three rows.

B  pictures at a time, one of each prompt
h  height and
w  width of the latents: the picture has 8h by 8w pixels
/  divides and rounds up: 9 rows are halved to 5, and enlarged to 9 again

The tables are written by hand, from the papers and the published configurations. Each row has two
witnesses: `sd1_impl`, run (the published size on torch's meta device, where tensors have shapes and
no numbers), and the oracle, whose shapes the goldens hold.
"""

import importlib
import math
import re
from collections.abc import Iterator

import pytest

TOKENS = [  # texts, and the ids that they become: start, at most 75 of the text, end to the end
    ("a red fox", (1, 77)),
    ("fox " * 100, (1, 77)),
    (["a red fox", ""], (2, 77)),
    ([], (0, 77)),
]

TEXT_ENCODER = """
    input_ids                                           B 77
    text_model.embeddings.token_embedding               B 77 768          B 77 64
    text_model.encoder.layers.0                         B 77 768          B 77 64
     .self_attn.attend.query                            B 12 77 64        B 4 77 16
     .self_attn                                         B 77 768          B 77 64
     .mlp.fc1                                           B 77 3072         B 77 256
     .mlp                                               B 77 768          B 77 64
    text_model.encoder.layers.1..2                      B 77 768          B 77 64
    text_model.encoder.layers.3..11                     B 77 768          none
    last_hidden_state                                   B 77 768          B 77 64
    pooler_output                                       B 768             B 64
"""

UNET = """
    time_proj                                           B 320             B 32
    time_embedding                                      B 1280            B 128
    conv_in                                             B 320 h w         B 32 h w

    down_blocks.0.resnets.0..1                          B 320 h w         B 32 h w
     .time_emb_proj                                     B 320             B 32
    down_blocks.0.attentions.0..1                       B 320 h w         B 32 h w
     .transformer_blocks.0.attn1.attend.query           B 8 h*w 40        B 8 h*w 4
     .transformer_blocks.0.attn1                        B h*w 320         B h*w 32
     .transformer_blocks.0.attn2.to_k                   B 77 320          B 77 32
     .transformer_blocks.0.attn2.attend.query           B 8 h*w 40        B 8 h*w 4
     .transformer_blocks.0.attn2.attend.key             B 8 77 40         B 8 77 4
     .transformer_blocks.0.attn2                        B h*w 320         B h*w 32
     .transformer_blocks.0.ff.net.0.proj                B h*w 2560        B h*w 256
     .transformer_blocks.0.ff.net.0                     B h*w 1280        B h*w 128
     .transformer_blocks.0.ff                           B h*w 320         B h*w 32
    down_blocks.0                                       B 320 h/2 w/2     B 32 h/2 w/2
    down_blocks.1.resnets.0..1                          B 640 h/2 w/2     B 64 h/2 w/2
    down_blocks.1.attentions.0..1                       B 640 h/2 w/2     B 64 h/2 w/2
     .transformer_blocks.0.attn2.attend.query           B 8 h/2*w/2 80    B 8 h/2*w/2 8
    down_blocks.1                                       B 640 h/4 w/4     B 64 h/4 w/4
    down_blocks.2.resnets.0..1                          B 1280 h/4 w/4    B 128 h/4 w/4
    down_blocks.2.attentions.0..1                       B 1280 h/4 w/4    B 128 h/4 w/4
     .transformer_blocks.0.attn2.attend.query           B 8 h/4*w/4 160   B 8 h/4*w/4 16
    down_blocks.2                                       B 1280 h/8 w/8    B 128 h/8 w/8
    down_blocks.3                                       B 1280 h/8 w/8    B 128 h/8 w/8

    mid_block                                           B 1280 h/8 w/8    B 128 h/8 w/8

    up_blocks.0.resnets.0..2.input                      B 2560 h/8 w/8    B 256 h/8 w/8
    up_blocks.0                                         B 1280 h/4 w/4    B 128 h/4 w/4
    up_blocks.1.resnets.0..1.input                      B 2560 h/4 w/4    B 256 h/4 w/4
    up_blocks.1.resnets.2.input                         B 1920 h/4 w/4    B 192 h/4 w/4
    up_blocks.1                                         B 1280 h/2 w/2    B 128 h/2 w/2
    up_blocks.2.resnets.0.input                         B 1920 h/2 w/2    B 192 h/2 w/2
    up_blocks.2.resnets.1.input                         B 1280 h/2 w/2    B 128 h/2 w/2
    up_blocks.2.resnets.2.input                         B 960 h/2 w/2     B 96 h/2 w/2
    up_blocks.2                                         B 640 h w         B 64 h w
    up_blocks.3.resnets.0.input                         B 960 h w         B 96 h w
    up_blocks.3.resnets.1..2.input                      B 640 h w         B 64 h w
    up_blocks.3                                         B 320 h w         B 32 h w

    sample                                              B 4 h w
"""

VAE_ENCODER = """
    encoder.conv_in                                     B 128 8h 8w       B 32 8h 8w
    encoder.down_blocks.0.resnets.0..1                  B 128 8h 8w       B 32 8h 8w
    encoder.down_blocks.0                               B 128 4h 4w       B 32 4h 4w
    encoder.down_blocks.1.resnets.0..1                  B 256 4h 4w       B 64 4h 4w
    encoder.down_blocks.1                               B 256 2h 2w       B 64 2h 2w
    encoder.down_blocks.2.resnets.0..1                  B 512 2h 2w       B 128 2h 2w
    encoder.down_blocks.2..3                            B 512 h w         B 128 h w
    encoder.mid_block.attentions.0                      B 512 h w         B 128 h w
     .attend.query                                      B 1 h*w 512       B 1 h*w 128
    quant_conv                                          B 8 h w
    mean                                                B 4 h w
    latents                                             B 4 h w
"""

VAE_DECODER = """
    post_quant_conv                                     B 4 h w
    decoder.conv_in                                     B 512 h w         B 128 h w
    decoder.mid_block                                   B 512 h w         B 128 h w
    decoder.up_blocks.0                                 B 512 2h 2w       B 128 2h 2w
    decoder.up_blocks.1                                 B 512 4h 4w       B 128 4h 4w
    decoder.up_blocks.2                                 B 256 8h 8w       B 64 8h 8w
    decoder.up_blocks.3                                 B 128 8h 8w       B 32 8h 8w
    image                                               B 3 8h 8w
"""

TXT2IMG = """
    input_ids                                           B 77
    prompt_embeds                                       B 77 768          B 77 64
    negative_prompt_embeds                              B 77 768          B 77 64
    initial_latents                                     B 4 h w
    model_input#0..1                                    B 4 h w
    noise_pred_uncond#0..1                              B 4 h w
    noise_pred_text#0..1                                B 4 h w
    latents#0..1                                        B 4 h w
    image                                               B 3 8h 8w
    image_uint8                                         B 8h 8w 3
"""

IMG2IMG = """
    init_image                                          B 3 8h 8w
    image_latents                                       B 4 h w
    latents#0..1                                        B 4 h w
"""

INPAINT = """
    mask                                                B 1 h w
    masked_image                                        B 3 8h 8w
    masked_image_latents                                B 4 h w
    model_input#0..1                                    B 9 h w
    noise_pred#0..1                                     B 4 h w
"""

TRAINING = """
    noisy_latents                                       B 4 h w
    target                                              B 4 h w
    model_output                                        B 4 h w
    loss                                                scalar
    grad.conv_in.weight                                 320 4 3 3         32 4 3 3
    grad.time_embedding.linear_1.weight                 1280 320          128 32
"""

CALLS = [  # of the UNet in 20 and in 50 steps: each has a timestep and gives a sample, B 4 h w
    ("pndm", (21, 51)),  # the first step is taken twice
    ("ddim", (20, 50)),
    ("ddpm", (20, 50)),
    ("lms", (20, 50)),
    ("euler", (20, 50)),
    ("euler_ancestral", (20, 50)),
    ("heun", (39, 99)),  # twice a step, but in the last
    ("dpmpp_2m", (20, 50)),
]

TABLES = {
    "text_encoder": TEXT_ENCODER,
    "unet": UNET,
    "vae_encoder": VAE_ENCODER,
    "vae_decoder": VAE_DECODER,
    "txt2img": TXT2IMG,
    "img2img": IMG2IMG,
    "inpaint": INPAINT,
    "training": TRAINING,
}
BATCHES = {  # B, h, w: a picture of 512 x 512; not square; and what no halving divides
    "published": ((1, 64, 64), (2, 9, 40)),
    "tiny": ((1, 8, 8), (2, 4, 6), (3, 9, 5)),
}


def rows(table: str, size: str) -> Iterator[tuple[str, str]]:
    """Yield the rows of one size of the model: a name, and what the table says of it."""
    stem = ""
    for line in filter(str.strip, TABLES[table].splitlines()):
        name, *columns = re.split(r"\s{2,}", line.strip())
        stem, name = (stem, stem + name) if name.startswith(".") else (name, name)
        before, first, last, after = re.fullmatch(r"(.*?)(?:(\d+)\.\.(\d+)(.*))?", name).groups()
        numbers = range(int(first), int(last) + 1) if first else [""]
        said = columns[-1] if size == "tiny" else columns[0]
        yield from ((f"{before}{n}{after or ''}", said) for n in numbers if said != "none")


def read(said: str, batch: tuple[int, int, int]) -> tuple[int, ...]:
    """Return what the table says in numbers: `B h/2*w/2 80` is three of them."""
    letters = dict(zip("Bhw", batch, strict=True))

    def factor(text: str) -> int:
        number, letter, divisor = re.fullmatch(r"(\d*)([Bhw]?)(?:/(\d))?", text).groups()
        return -(-int(number or 1) * letters.get(letter, 1) // int(divisor or 1))

    return tuple(math.prod(map(factor, s.split("*"))) for s in said.split() if s != "scalar")


ROWS = [(table, size, *row) for table in TABLES for size in BATCHES for row in rows(table, size)]
CASES = [(batch, *row) for row in ROWS for batch in BATCHES[row[1]]]
NOT_RECORDED = [("img2img", "published"), ("training", "published")]
RECORDED = [row for row in ROWS if row[:2] not in NOT_RECORDED and ".attend." not in row[2]]


@pytest.mark.parametrize(
    ("batch", "table", "size", "name", "said"),
    [pytest.param(*case, marks=pytest.mark.xdist_group(f"shapes/{case[1]}")) for case in CASES],
    ids=["{1}-{2}-{0[0]}x{0[1]}x{0[2]}-{3}".format(*case) for case in CASES],
)
def test_sd1_impl(computed_shapes, batch, table, size, name, said):
    """What runs here has the sizes in the table."""
    assert computed_shapes(table, size, batch).get(name) == read(said, batch)


@pytest.mark.parametrize(
    ("table", "size", "name", "said"), RECORDED, ids=["-".join(row[:3]) for row in RECORDED]
)
def test_oracle(recorded_shapes, table, size, name, said):
    """What diffusers and transformers computed has the sizes in the table."""
    shapes, batch = recorded_shapes(table, size)
    assert shapes.get(name) == read(said, batch)


@pytest.mark.parametrize(("texts", "shape"), TOKENS, ids=["short", "long", "two", "none"])
def test_tokenizer(texts, shape):
    """Every text becomes a row of 77 ids."""
    sd1_impl = pytest.importorskip("sd1_impl")
    assert sd1_impl.CLIPTokenizer()(texts).shape == shape


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize(("name", "calls"), CALLS, ids=[name for name, _ in CALLS])
def test_scheduler(recorded_samples, name, calls, steps):
    """A run has as many timesteps as the table says, and each gives a sample of latents."""
    torch = pytest.importorskip("torch")
    config, kind = importlib.import_module("sd1_impl.schedulers").SCHEDULERS[name]
    scheduler = kind(config())
    run, sample, samples = scheduler.start(steps), torch.zeros(2, 4, 6, 7), []
    for t in run.timesteps.tolist():
        noise = [sample] if scheduler.adds_noise(t) else []
        sample = scheduler.step(sample, t, sample, run, *noise)
        samples.append(sample)
    wanted = (calls[steps == 50], 2, 4, 6, 7)
    assert torch.stack(samples).shape == recorded_samples(name, steps) == wanted
