"""Draw a picture with the library: ``python examples/txt2img.py [--weights DIR]``.

DIR holds Stable Diffusion v1 in diffusers' layout. Without it the weights are small and random:
everything runs, but the picture means nothing.
"""

import argparse

import torch
from PIL import Image

from sd1_impl import Step, load_pipeline, synthetic_pipeline


def progress(step: Step) -> None:
    """Show how large the latents are while the noise leaves them."""
    print(f"step {step.index:2}  t = {step.timestep:3}  latents {step.latents.std():.2f}")


parser = argparse.ArgumentParser()
parser.add_argument("--weights")
weights = parser.parse_args().weights

pipeline = load_pipeline(weights) if weights else synthetic_pipeline("tiny")
size = 512 if weights else 128
picture = pipeline(
    "a photograph of an astronaut riding a horse",
    negative_prompt="blurry",
    num_inference_steps=25,
    guidance_scale=7.5,
    height=size,
    width=size,
    generator=torch.Generator().manual_seed(0),
    callback=progress,
)
Image.fromarray(picture.image_uint8[0].numpy()).save("picture.png")
print("saved picture.png")
