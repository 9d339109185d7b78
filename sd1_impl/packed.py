"""Weights laid out once for the CPU's kernels, instead of at every call.

What a network computes stays the same but for rounding. Three things cost a CPU time that is no
arithmetic: oneDNN, torch's library of CPU kernels, copies the weights of a convolution into blocks
at every call; a matrix product reads its weights as they lie, which takes half as long again; and
a map whose channels are not innermost is copied to become tokens. `pack` lays the weights out
beforehand, as ``torch.compile`` does with frozen weights, and keeps the channels innermost.

A convolution that follows a nearest-neighbour enlargement reads every pixel up to four times. The
weights that meet the same pixel are added beforehand: 4 products are left of 9 (Shi et al., "Is
the deconvolution layer the same as a convolutional layer?", 2016, arXiv 1609.07009, says it the
other way round).

Shapes: B batch, C channels in, O channels out, H W height and width of a map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sd1_impl import resnet, vae

DTYPES = (torch.float32, torch.bfloat16)
"""Those for which oneDNN has packed kernels."""

_PLAIN = ("none", [], "")  # the result as it is: oneDNN could add or activate on the way
_CHANNELS_LAST = torch.channels_last


class PackedLinear(nn.Module):
    """``nn.Linear`` with packed weights.

    Args:
        weight: ``(O, C)``.
        bias: ``(O,)``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., O)``."""
        return torch.ops.mkldnn._linear_pointwise(tokens, self.packed, self.bias, *_PLAIN)


class PackedPointwise(PackedLinear):
    """A 1x1 convolution with packed weights: a linear layer on the channels of every pixel.

    Args:
        weight: ``(O, C, 1, 1)``.
        bias: ``(O,)``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.flatten(1), bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, O, H, W)``."""
        return super().forward(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedConv2d(nn.Module):
    """``nn.Conv2d`` with packed weights; its result has the channels innermost.

    Args:
        weight: ``(O, C, rows, columns)``.
        bias: ``(O,)``, or None.
        padding: Rows and columns of zeros on every side.
        stride: Rows and columns from one result to the next.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, ...],
        stride: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__()
        self.bias = bias
        self.geometry = (list(padding), list(stride), [1, 1], 1)  # no dilation, one group
        blocks = weight.contiguous().to_mkldnn()
        self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(blocks, *self.geometry)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, O, ...)``, as the convolution does."""
        hidden = hidden.contiguous(memory_format=_CHANNELS_LAST)
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(hidden, self.packed, self.bias, *self.geometry, *_PLAIN)


class PackedUpsample(nn.Module):
    """Twice the size by nearest neighbour, then a 3x3 convolution: four 2x2 convolutions in one.

    The result's even rows are made of the pixel above, weighted by the upper row of the kernel, and
    of the pixel itself, weighted by the sum of both others; its odd rows the other way round. So
    are its columns.

    Args:
        upsample: The UNet's or the autoencoder's. It still computes what is no more than nearly
            twice the size, where the last row meets the border instead of its twin.
    """

    def __init__(self, upsample: resnet.Upsample | vae.Upsample) -> None:
        super().__init__()
        self.upsample = upsample
        weight, bias = upsample.conv.weight, upsample.conv.bias
        self.phases = nn.ModuleList(
            PackedConv2d(_merged(_merged(weight, 2, row), 3, column), bias, padding=(1, 1))
            for row in (0, 1)
            for column in (0, 1)
        )

    def forward(self, hidden: Tensor, *size: Sequence[int]) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, O, 2 H, 2 W)``; of the UNet's, to ``(B, O, *size)``."""
        B, C, H, W = hidden.shape
        if size and tuple(size[0]) != (2 * H, 2 * W):
            return self.upsample(hidden, *size)
        out = torch.empty(
            (B, C, 2 * H, 2 * W),
            dtype=hidden.dtype,
            memory_format=_CHANNELS_LAST,
        )
        for i, convolve in enumerate(self.phases):
            row, column = divmod(i, 2)
            part = convolve(hidden)  # (B, C, H + 1, W + 1)
            out[:, :, row::2, column::2] = part[:, :, row : row + H, column : column + W]
        return out


def _merged(weight: Tensor, axis: int, phase: int) -> Tensor:
    """Return the two weights of a phase of the three along an axis: ``a, b + c`` or ``a + b, c``.

    They are added in float64: only the sum is rounded.
    """
    a, b, c = weight.double().unbind(axis)
    pair = (a + b, c) if phase else (a, b + c)
    return torch.stack(pair, dim=axis).to(weight.dtype)


def _packed(layer: nn.Module) -> nn.Module | None:
    """Return a layer with its weights packed; None where its parts may be, or nothing."""
    if isinstance(layer, (resnet.Upsample, vae.Upsample)):
        # Sums of weights rounded to the 8 bits of bfloat16 would be other weights.
        return PackedUpsample(layer) if layer.conv.weight.dtype is torch.float32 else None
    if isinstance(layer, nn.Linear):
        return PackedLinear(layer.weight, layer.bias)
    if isinstance(layer, nn.Conv2d):
        if layer.kernel_size == (1, 1):
            return PackedPointwise(layer.weight, layer.bias)
        return PackedConv2d(layer.weight, layer.bias, layer.padding, layer.stride)
    return None


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether weights of a dtype on a device can be packed."""
    return dtype in DTYPES and device.type == "cpu" and torch.backends.mkldnn.is_available()


def pack(network: nn.Module) -> int:
    """Pack the weights of a network, for inference on a CPU.

    The network changes: its layers are others, of the same paths, its weights no longer parameters.

    Args:
        network: A UNet, text encoder or autoencoder, half of one, or a container of them, on the
            CPU, in one of `DTYPES`.

    Returns:
        How many layers were packed.

    Raises:
        ValueError: If torch was built without oneDNN, or a weight has another dtype or device.
    """
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this torch has no oneDNN, whose kernels the weights would be packed for")
    for name, weight in network.named_parameters():
        if not can_pack(weight.dtype, weight.device):
            found = f"{weight.dtype} on {weight.device}"
            raise ValueError(f"{name} is {found}: packed weights are float32 or bfloat16, on cpu")
    with torch.no_grad():
        return _pack_children(network)


def _pack_children(module: nn.Module) -> int:
    count = 0
    for name, child in module.named_children():
        packed = _packed(child)
        if packed is None:
            count += _pack_children(child)
        else:
            setattr(module, name, packed)
            count += 1
    return count
