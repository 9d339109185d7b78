"""A pipeline's pictures: the oracle's, the port's, and their difference made visible."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from conformance.evidence.error_map import reduced
from conformance.evidence.png import png
from conformance.pixels import LEVELS

MOST_SIDE = 512
"""Pixels of a side that is shown; of a larger picture every second, third, ... pixel."""
MOST_PICTURES = 4
"""Of a batch."""
_SMALLEST_SIDE = 7
"""Of a picture whose structural similarity is computed: scikit-image's window."""


def triptychs(
    pixels: np.ndarray,
    truth_pixels: np.ndarray,
    image: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Draw the pictures of a batch beside what they should be.

    Args:
        pixels: The port's, uint8 (B, H, W, 3).
        truth_pixels: The oracle's, of the same shape.
        image: The port's image in 0..1, (B, 3, H, W). Without it, or without the oracle's, the
            difference is that of the pixels.
        truth: The oracle's image.

    Returns:
        For each of the first pictures `index`, the PNG files `oracle`, `port` and `difference` in
        base64, the `factor` by which the difference is amplified, so that the largest is white
        (1 where there is none), and `psnr` in dB and `ssim`, None where scikit-image is missing.
    """
    if image is None or truth is None or image.shape != truth.shape:
        differences = np.abs(pixels.astype(np.float64) - truth_pixels) / LEVELS
    else:
        with np.errstate(all="ignore"):
            differences = np.moveaxis(np.abs(image.astype(np.float64) - truth), 1, -1)
    rows = zip(pixels, truth_pixels, np.nan_to_num(differences, nan=1.0), strict=True)
    return [
        {"index": i, **_triptych(own, wanted, difference)}
        for i, (own, wanted, difference) in enumerate(rows)
        if i < MOST_PICTURES
    ]


def _triptych(own: np.ndarray, wanted: np.ndarray, difference: np.ndarray) -> dict[str, Any]:
    step = -(-max(own.shape[:2]) // MOST_SIDE)
    largest = float(difference.max())
    factor = 1 / largest if 0 < largest < math.inf else 1.0
    light = np.rint(np.minimum(reduced(difference, MOST_SIDE) * factor, 1) * LEVELS)
    return {
        "oracle": _base64(wanted[::step, ::step]),
        "port": _base64(own[::step, ::step]),
        "difference": _base64(light.astype(np.uint8)),
        "factor": float(f"{factor:.4g}"),
        **_similarity(own, wanted),
    }


def _base64(pixels: np.ndarray) -> str:
    return base64.b64encode(png(pixels)).decode("ascii")


def _similarity(own: np.ndarray, wanted: np.ndarray) -> dict[str, float | str | None]:
    """Return PSNR and SSIM where scikit-image is installed; equal pictures have PSNR `inf`."""
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ImportError:
        return {"psnr": None, "ssim": None}
    same = np.array_equal(own, wanted)
    psnr = "inf" if same else round(float(peak_signal_noise_ratio(wanted, own)), 2)
    if min(own.shape[:2]) < _SMALLEST_SIDE:
        return {"psnr": psnr, "ssim": None}
    ssim = float(structural_similarity(wanted, own, channel_axis=-1))
    return {"psnr": psnr, "ssim": round(ssim, 4)}
