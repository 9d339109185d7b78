"""A picture of 512 by 512 pixels from the 1.07B-parameter model, against the oracle, live.

Nothing is stored: the oracle computes it in float64, the reference in four lawful ways gives the
noise, and `sd1_impl` draws it. Each runs in a process of its own (this file, as a script), whose
peak memory is reported. Takes about 15 minutes on 2 cores.
"""

import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from conformance.case import Case
from conformance.scenarios.pictures import PictureScenario
from conformance.tolerance import LIMIT, floor
from conformance.variants import parse_variant

PICTURE = Case(
    "pipeline/txt2img",
    parse_variant("sd1"),
    PictureScenario("picture512", "the whole of SD v1 at its own size", height=64, width=64),
)
LATENTS = [f"latents#{k}" for k in range(PICTURE.scenario.calls)]
HONEST = ("two threads", "one thread", "channels last", "plain attention")
MOST = 20  # GiB, of a machine that has 24
say = partial(print, flush=True)  # `pytest -rP` shows it


def draw(who: str) -> dict[str, np.ndarray]:
    """Return latents and image as one of the three computes them; by evaluation, if several."""
    import torch

    from conformance import oracle
    from conformance.adapters.sd1_impl_sampling import load_pipeline
    from conformance.recording.honest import CALIBRATION

    weights = PICTURE.variant.weights(PICTURE.component)
    if who == "sd1_impl":
        outputs, _ = load_pipeline(PICTURE.variant, weights, "float32", "cpu").run(PICTURE.inputs())
        return outputs
    exact = who == "oracle"
    dtype = torch.float64 if exact else torch.float32
    component = oracle.reference(PICTURE.component, PICTURE.variant, weights, dtype)
    if exact:
        truth = oracle.evaluate(component, PICTURE, PICTURE.terms)
        tensors = {name: truth.probes[name] for name in LATENTS} | truth.outputs
        return {name: tensor.numpy() for name, tensor in tensors.items()}
    found = {}
    for evaluation in CALIBRATION:
        if evaluation.name in HONEST:
            with evaluation.around(component.module):
                outputs, _ = component.run(PICTURE.inputs())
            found |= {f"{evaluation.name}/{name}": array for name, array in outputs.items()}
    return found


def in_a_process(who: str, folder: Path) -> dict[str, np.ndarray]:
    """Let one of the three draw, and report time and peak memory."""
    command = [sys.executable, __file__, who, str(folder / who)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    say(f"{who}: {report['seconds']:.0f} s, {report['GiB']:.1f} GiB at the most")
    assert report["GiB"] <= MOST
    return dict(np.load(folder / f"{who}.npz"))


def distance(value: np.ndarray, truth: np.ndarray) -> float:
    """Return the relative L2 distance."""
    return float(np.linalg.norm(value.astype(np.float64) - truth) / np.linalg.norm(truth))


@pytest.mark.full
@pytest.mark.xdist_group("sd1")  # 15 GiB: not beside another network of this size
def test_a_picture_of_512_pixels_is_the_oracles(tmp_path: Path):
    """Latents of both steps and the image stay within the limit; pixels are roundings of it."""
    pytest.importorskip("diffusers")
    wanted = in_a_process("oracle", tmp_path)
    honest = in_a_process("reference", tmp_path)
    found = in_a_process("sd1_impl", tmp_path)
    assert found["image_uint8"].shape == (1, 512, 512, 3)
    for name in (*LATENTS, "image"):
        noise = max(distance(honest[f"{e}/{name}"], wanted[name]) for e in HONEST)
        ratio = distance(found[name], wanted[name]) / max(noise, floor("float32"))
        say(f"{name}: noise {noise:.2e}, ratio {ratio:.2f}, limit {LIMIT:g}")
        assert ratio <= LIMIT, name
    levels = np.abs(found["image_uint8"] - 255 * wanted["image"].transpose(0, 2, 3, 1))
    assert np.max(levels) <= 0.5 + 255 * LIMIT * max(
        np.max(np.abs(honest[f"{e}/image"] - wanted["image"])) for e in HONEST
    )


if __name__ == "__main__":
    start = time.perf_counter()
    arrays = draw(sys.argv[1])
    np.savez(sys.argv[2], **arrays)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(json.dumps({"seconds": time.perf_counter() - start, "GiB": memory}))
