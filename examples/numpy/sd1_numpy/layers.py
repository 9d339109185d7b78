"""The layers of which all networks of SD v1 are made, as functions of arrays.

Every function computes in the dtype of its input, sums included, and changes none of its arguments.
Maps are (B, C, H, W) and sequences (B, N, C): B batch, C channels, N places, H W height and width.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Multiply the last axis by a matrix (out, in), add a bias."""
    product = x @ weight.T
    return product if bias is None else product + bias


def conv2d(
    x: Array, weight: Array, bias: Array, stride: int = 1, pad: tuple[int, int] | None = None
) -> Array:
    """Slide a kernel over a map: every place is the product of the kernel and what it covers.

    Args:
        x: Map, (B, C, H, W).
        weight: Kernel, (out, C, k, k), k odd.
        bias: (out,).
        stride: Rows and columns from one place to the next.
        pad: Rows of zeros above and below, which are as many columns left and right; by default
            what keeps the size of a map: k // 2.

    Returns:
        Map, (B, out, H', W').
    """
    kernel = weight.shape[-1]
    sides = pad or (kernel // 2, kernel // 2)
    x = np.pad(x, ((0, 0), (0, 0), sides, sides))
    seen = sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    batch, _, height, width = seen.shape[:4]
    columns = seen.transpose(0, 1, 4, 5, 2, 3).reshape(batch, -1, height * width)
    out = weight.reshape(len(weight), -1) @ columns + bias[:, None]
    return out.reshape(batch, -1, height, width)


def standardize(x: Array, eps: float) -> Array:
    """Give the last axis mean 0 and variance 1, in two passes: the mean, then what is left of it.

    Subtracting the squared mean from the mean square takes one pass, and loses every digit where
    the mean is large against the deviation.
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Standardize each place of a sequence over its channels (Ba et al., 2016)."""
    return standardize(x, eps) * weight + bias


def group_norm(x: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
    """Standardize each group of channels over the group and all places (Wu and He, 2018).

    Args:
        x: (B, C, ...); places may have any number of axes.
        weight: (C,).
        bias: (C,).
        groups: Divides C.
        eps: Added to the variance.
    """
    normed = standardize(x.reshape(len(x), groups, -1), eps).reshape(x.shape)
    channels = (-1, *[1] * (x.ndim - 2))
    return normed * weight.reshape(channels) + bias.reshape(channels)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without a power that could overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def silu(x: Array) -> Array:
    """Return x sigmoid(x): the activation of UNet and VAE."""
    return x * sigmoid(x)


def quick_gelu(x: Array) -> Array:
    """Return x sigmoid(1.702 x), which resembles GELU: the activation of CLIP's text encoder."""
    return x * sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """Return x times the share of a normal distribution below x, as the UNet's GEGLU wants it.

    NumPy lacks the error function; Python's takes one number at a time.
    """
    values = (x * math.sqrt(0.5)).ravel().tolist()
    erf = np.fromiter(map(math.erf, values), x.dtype, x.size).reshape(x.shape)
    return 0.5 * x * (1 + erf)


def softmax(x: Array) -> Array:
    """Make the last axis positive with sum 1; subtracting the maximum changes no quotient."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def attention(q: Array, k: Array, v: Array, heads: int, mask: Array | None = None) -> Array:
    """Mix values by how well their keys match a query (Vaswani et al., 2017, equation 1).

    Args:
        q: Queries, (B, N, C).
        k: Keys, (B, M, C).
        v: Values, (B, M, C).
        heads: Divides C; each head attends with its own C / heads channels.
        mask: (N, M), added to the scores: -inf where a query must not look.

    Returns:
        (B, N, C), the heads side by side.
    """
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    mixed = softmax(scores) @ v
    return mixed.swapaxes(1, 2).reshape(len(q), q.shape[2], -1)


def enlarge(x: Array, height: int, width: int) -> Array:
    """Enlarge a map: each place takes the value of the one that lies there in the small map."""
    rows = np.arange(height) * x.shape[2] // height
    columns = np.arange(width) * x.shape[3] // width
    return x[:, :, rows[:, None], columns]
