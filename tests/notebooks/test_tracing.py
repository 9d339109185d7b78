"""What the notebooks share, on one small attention."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib").use("agg")
pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))

import tracing
from truth import Told, rel_l2

from sd1_impl.attention import CrossAttention


@pytest.fixture
def attention():
    """Return an attention of two heads over a context, with seeded weights."""
    layer = CrossAttention(8, 6, 2).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for weight in layer.parameters():
        weight.normal_(generator=generator)
    return layer


def drawn(*shape):
    """Return seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_attention_weights(attention):
    """Weights sum to 1, make the output of the values, and the kernel is put back."""
    tokens, context, kernel = drawn(1, 4, 8), drawn(1, 5, 6), attention.attend
    with (
        tracing.watching_attention(attention) as seen,
        tracing.watching(attention, ["to_out.0.input"]) as inside,
    ):
        watched = attention(tokens, context)
    ((weights, values),) = seen
    assert attention.attend is kernel
    assert torch.equal(watched, attention(tokens, context))
    assert weights.shape == (1, 2, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 4))
    merged = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(merged, inside["to_out.0.input"])


def test_peak_counts_bytes(attention):
    """A product of ones into 1 KiB holds that, and the weights are apart."""
    tokens = drawn(1, 4, 8)
    footprint = tracing.peak(attention, lambda: torch.ones(256).add_(1))
    assert footprint.peak == 1024
    assert footprint.weights == sum(weight.nbytes for weight in attention.parameters())
    assert tracing.peak(attention, lambda: attention(tokens, drawn(1, 5, 6))).where


def test_ratio_is_error_over_noise(capsys):
    """Off by twice the noise is a ratio of 2, and is printed."""
    told = Told({"x": torch.ones(4, dtype=torch.float64)}, {"x": 1e-3})
    assert told.ratio("x", torch.full((4,), 1.002, dtype=torch.float64)) == pytest.approx(2)
    assert capsys.readouterr().out.startswith("x  ")


def test_other_shapes_are_refused():
    """A tensor that would be broadcast to the truth is no result."""
    with pytest.raises(ValueError, match=r"shape \(1,\), expected \(4,\)"):
        rel_l2(torch.ones(1), torch.ones(4))


def test_pictures_and_maps_are_shown():
    """Pictures and maps side by side, more of them than fit in a row."""
    panels = {f"map {i}": drawn(3, 3) for i in range(3)} | {"picture": drawn(3, 4, 4)}
    tracing.show(panels, columns=3, label="value")
