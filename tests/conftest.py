"""Fixtures shared by the matrix and the unit tests, and the witnesses of `test_shapes.py`."""

import importlib
from functools import cache, partial

import pytest

from conformance.golden import Golden
from conformance.manifest import golden_path


class LiveOracle:
    """Asks the installed oracle; what splice mode has evaluated is not evaluated again."""

    def __init__(self):
        self.oracle = importlib.import_module("conformance.oracle")
        self.verify = importlib.import_module("conformance.recording.verify")
        self.values = importlib.import_module("conformance.recording.live").LiveTraces()

    def token_ids(self, case):
        """Return the ids that the installed tokenizer makes of a case's texts."""
        return self.oracle.token_ids(case.inputs()["text"].tolist())


@pytest.fixture(scope="session")
def live_oracle():
    """The installed oracle."""
    pytest.importorskip("diffusers")
    return LiveOracle()


GOLDENS = {
    "text_encoder": "text_encoder/{}/base",
    "unet": "unet/{}/base",
    "vae_encoder": "vae_encoder/{}/base",
    "vae_decoder": "vae_decoder/{}/base",
    "txt2img": "pipeline/txt2img/{}/ddim2",
    "img2img": "pipeline/img2img/{}/base",
    "inpaint": "pipeline/inpaint/{}-inpaint/everywhere",
    "training": "training/{}/base",
}


@cache
def _recorded(case_id):
    golden = Golden.from_bytes(golden_path(case_id).read_bytes(), case_id)
    given = {name: tuple(facts["shape"]) for name, facts in golden.inputs.items()}
    probes = dict(zip(golden.probes, map(tuple, golden.shapes), strict=True))
    first = next(n for n in ("sample", "latents", "noise", "input_ids") if n in given)
    batch = (given[first][0], *given[first][-2:])
    return given | probes | golden.output_shapes, batch


@pytest.fixture(scope="session")
def recorded_shapes():
    """Of the tensors in the golden of a table of shapes, and its (B, h, w)."""
    sizes = {"published": "sd1", "tiny": "tiny"}
    return lambda table, size: _recorded(GOLDENS[table].format(sizes[size]))


@pytest.fixture(scope="session")
def recorded_samples():
    """Shape of all samples of a scheduler's run, one after the other, in its golden."""
    case = {20: "scheduler/{}/-/steps20", 50: "scheduler/{}/-/base"}
    return lambda name, steps: _recorded(case[steps].format(name))[0]["samples"]


class ShapesOfModel:
    """Runs `sd1_impl`, and notes the shape of all that its layers read and return."""

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        self.sd1 = importlib.import_module("sd1_impl")
        self.pipeline = cache(self.pipeline)
        self.run = cache(self.run)

    def pipeline(self, size, task):
        """Return the pipeline of a task; its networks' notes are in ``noted``."""
        sd1, torch = self.sd1, self.torch
        inpaints = task == "inpaint"
        kinds = {"img2img": sd1.Image2Image, "inpaint": sd1.Inpaint}
        kind = kinds.get(task, sd1.Text2Image)
        if size == "published":
            unet = sd1.SD_V1_INPAINT_UNET if inpaints else sd1.SD_V1_UNET
            with torch.device("meta"):
                networks = {
                    "text_encoder": sd1.CLIPTextEncoder(sd1.SD_V1_TEXT_ENCODER),
                    "unet": sd1.UNet(unet),
                    "vae": sd1.AutoencoderKL(sd1.SD_V1_VAE),
                }
            pipe = kind(sd1.CLIPTokenizer(), **networks, scheduler=None)
            # Pixels go to the CPU: here there are none to go.
            pipe.to_uint8 = lambda image: kind.to_uint8(pipe, torch.zeros(image.shape))
        else:
            pipe = sd1.synthetic_pipeline("tiny-inpaint" if inpaints else "tiny", pipeline=kind)
        pipe.scheduler = sd1.DDIMScheduler(sd1.SD_V1_DDIM)
        pipe.noted = {}
        for network in (pipe.text_encoder, pipe.unet, pipe.vae):
            for path, layer in network.named_modules():
                layer.register_forward_hook(partial(self.note, pipe.noted, path))
                if hasattr(layer, "attend"):
                    layer.attend = partial(self.attend, pipe.noted, path, layer.attend)
        return pipe

    def note(self, noted, path, _, read, returned):
        """Note what a layer read first, and what it returned first."""
        noted[f"{path}.input"] = tuple(read[0].shape)
        noted[path] = tuple((returned if hasattr(returned, "shape") else returned[0]).shape)

    def attend(self, noted, path, kernel, query, key, value, **mask):
        """Note what attention is computed from, and compute it."""
        noted[f"{path}.attend.query"] = tuple(query.shape)
        noted[f"{path}.attend.key"] = tuple(key.shape)
        return kernel(query, key, value, **mask)

    def run(self, table, size, batch):
        """Return the shapes of the tensors that a table is about, by name."""
        kinds = {"img2img": self.image_to_image, "inpaint": self.image_to_image}
        compute = kinds.get(table, getattr(self, table, None))
        pipe = self.pipeline(size, table if table in kinds else "txt2img")
        pipe.noted.clear()
        with self.torch.set_grad_enabled(table == "training"):
            named = compute(pipe, *batch)
        shapes = {n: tuple(t.shape) for n, t in named.items() if hasattr(t, "shape")}
        return pipe.noted | shapes

    def zeros(self, pipe, *shape):
        """Return zeros where the networks are."""
        return self.torch.zeros(shape, device=next(pipe.unet.parameters()).device)

    def text_encoder(self, pipe, B, *_):
        """Encode texts."""
        ids = pipe.tokenizer(["a red fox"] * B).to(self.zeros(pipe).device)
        states, pooled = pipe.text_encoder(ids)
        return {"input_ids": ids, "last_hidden_state": states, "pooler_output": pooled}

    def unet(self, pipe, B, h, w):
        """Predict the noise in latents."""
        states = self.text_encoder(pipe, B)["last_hidden_state"]
        return {"sample": pipe.unet(self.zeros(pipe, B, 4, h, w), 10, states)}

    def vae_encoder(self, pipe, B, h, w):
        """Encode pictures, and draw their latents."""
        posterior = pipe.vae.encode(self.zeros(pipe, B, 3, 8 * h, 8 * w))
        latents = pipe.vae.sample_latents(posterior, self.zeros(pipe, B, 4, h, w))
        return {**vars(posterior), "latents": latents}

    def vae_decoder(self, pipe, B, h, w):
        """Decode latents."""
        return {"image": pipe.vae.decode(self.zeros(pipe, B, 4, h, w))}

    def txt2img(self, pipe, B, h, w, **inputs):
        """Draw, in two steps."""
        inputs = inputs or {"height": 8 * h, "width": 8 * w, "num_inference_steps": 2}
        steps = []
        picture = pipe(["a red fox"] * B, callback=steps.append, **inputs)
        told = {f"{n}#{i}": t for i, step in enumerate(steps) for n, t in vars(step).items()}
        return vars(picture) | told

    def image_to_image(self, pipe, B, h, w):
        """Draw with a picture to begin with, and where there is a use for one a mask."""
        pixels = self.torch.zeros(B, 8 * h, 8 * w, 3, dtype=self.torch.uint8)
        masks = {"mask": pixels[..., 0]} if isinstance(pipe, self.sd1.Inpaint) else {}
        late = {"num_inference_steps": 4, "strength": 0.5}
        return self.txt2img(pipe, B, h, w, image=pixels, **masks, **late)

    def training(self, pipe, B, h, w):
        """Compute the loss and its gradients."""
        states = self.text_encoder(pipe, B)["last_hidden_state"].detach()
        latents, timesteps = self.zeros(pipe, B, 4, h, w), self.torch.arange(B)
        loss = self.sd1.denoising_loss(
            pipe.unet, pipe.scheduler, latents, timesteps, latents, states
        )
        loss.loss.backward()
        return vars(loss) | {f"grad.{n}": p.grad for n, p in pipe.unet.named_parameters()}


@pytest.fixture(scope="session")
def computed_shapes():
    """Of the tensors of a table of shapes, as `sd1_impl` computes them for (B, h, w)."""
    return ShapesOfModel().run
