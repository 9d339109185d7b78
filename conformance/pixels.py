"""Pixels: an 8-bit picture against the floating image that it was made from."""

from __future__ import annotations

import numpy as np

from conformance import tolerance
from conformance.compare import Record, rms_of

LEVELS = 255
_OFF = 0.2
"""Mean error, in levels, beyond which pixels are no roundings: truncation makes half a level."""
_SMALLEST_SIDE = 7
"""Of a picture whose structural similarity is computed: scikit-image's window."""


def judge_pixels(
    name: str,
    value: np.ndarray,
    image: np.ndarray,
    truth: np.ndarray | None,
    noise: float,
    arithmetic: str,
) -> Record:
    """Judge a uint8 picture.

    A pixel is right if it is the rounding of some number that is no further from the image than the
    limit allows. The image is the port's own: it is judged itself, and its distance from the
    oracle's is no business of the rounding.

    Args:
        name: Name of the output.
        value: What the port returned, uint8 (B, H, W, 3).
        image: The port's image in 0..1, (B, 3, H, W).
        truth: The oracle's picture, uint8; for PSNR and SSIM, which are shown, never judged. None
            where it is not kept.
        noise: Noise of the image's worst element, over its RMS.
        arithmetic: What the port computed in.

    Returns:
        The record: its error is the largest distance of a pixel from the interval that rounds to
        it, in levels.
    """
    with np.errstate(all="ignore"):
        levels = np.moveaxis(image.astype(np.float64), 1, -1) * LEVELS
        signed = value.astype(np.float64) - levels
        beyond = np.maximum(np.abs(signed) - 0.5, 0.0)
        rms = rms_of(levels)
    unit = max(noise, tolerance.floor(arithmetic)) * rms
    ratio = float(np.max(beyond)) / unit
    verdict = tolerance.verdict(ratio)
    wrong = int(np.count_nonzero(~(beyond <= tolerance.LIMIT * unit)))
    note = "" if truth is None else _similarity(value, truth)
    if verdict == "fail":
        note = f"{wrong} of {value.size} pixels wrong, {_cause(signed)}; {note}"
    return Record(
        name,
        "output",
        list(value.shape),
        float(np.max(beyond)),
        unit,
        ratio,
        verdict,
        approximate=False,
        rms=rms_of(value),
        max_abs=float(value.max()),
        note=note.rstrip("; "),
    )


def _cause(signed: np.ndarray) -> str:
    """Say what the mean difference of pixels from 255 times the image tells."""
    inside = signed[np.abs(signed) < 1]
    mean = float(np.mean(signed))
    if inside.size == signed.size and abs(mean) > _OFF:
        how = "truncated" if mean < 0 else "rounded up"
        return f"on average {mean:+.2f} levels off: {how}, not rounded to nearest"
    if inside.size < signed.size:
        return f"on average {mean:+.2f} levels off: wrapped round, not clamped, or another scale"
    return f"on average {mean:+.2f} levels off"


def _similarity(value: np.ndarray, truth: np.ndarray) -> str:
    """Return PSNR and SSIM of the worst picture of a batch, where scikit-image is installed."""
    if np.array_equal(value, truth):
        return "identical to the reference's picture"
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ImportError:
        return "PSNR and SSIM absent: scikit-image is not installed"
    with np.errstate(divide="ignore"):
        psnr = min(
            peak_signal_noise_ratio(wanted, got) for got, wanted in zip(value, truth, strict=True)
        )
    if min(truth.shape[1:3]) < _SMALLEST_SIDE:
        return f"PSNR {psnr:.1f} dB"
    ssim = min(
        structural_similarity(wanted, got, channel_axis=-1)
        for got, wanted in zip(value, truth, strict=True)
    )
    return f"PSNR {psnr:.1f} dB, SSIM {ssim:.4f}"
