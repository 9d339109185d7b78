"""Sums of the backward pass in another order: the same gradients, and none of torch's own sums."""

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from conformance.dispatch import Mode
from conformance.recording.modes import MovedProducts, sequential_matmul, sequential_total
from conformance.recording.modes_training import _BACKWARD, TrainingSummation


def normal(*shape, seed=0):
    """Return float64 noise that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


MAP, ROWS, WEIGHT = normal(2, 4, 5, 7), normal(3, 6), normal(6, 4, 3, 3, seed=1)
SIX, FOUR = normal(6, seed=2), normal(4, seed=3)
LINEAR = normal(5, 6, seed=4)

OPERATIONS = {
    "convolution": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (MAP, WEIGHT, SIX)),
    "convolution-stride": (lambda x, w, b: F.conv2d(x, w, b, stride=2), (MAP, WEIGHT, SIX)),
    "group-norm": (lambda x, w, b: F.group_norm(x, 2, w, b, 1e-5), (MAP, FOUR, FOUR)),
    "layer-norm": (lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-5), (ROWS, SIX, SIX)),
    "softmax": (lambda x: x.softmax(-1), (ROWS,)),
    "linear": (lambda x, w: F.linear(x, w, w[:, 0]), (ROWS, LINEAR)),
    "broadcast": (lambda x, b: x * b[:, None, None], (MAP, FOUR)),
    "mean-square": (lambda x: F.mse_loss(x, x.detach().flip(0)), (MAP,)),
}


class Seen(Mode):
    """Notes every operation that reaches torch."""

    def __init__(self):
        super().__init__()
        self.functions = set()

    def operation(self, func, args, kwargs):
        """Run it."""
        self.functions.add(func)
        return func(*args, **kwargs)


def gradients(function, inputs):
    """Return a result and its gradients, given unequal weights of its elements."""
    result = function(*inputs)
    weights = torch.arange(1.0, result.numel() + 1, dtype=torch.float64).reshape(result.shape)
    unique = list(dict.fromkeys(inputs))
    return [result, *torch.autograd.grad(result, unique, weights)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_the_same(name):
    """Each handler computes what torch does, up to rounding, and without torch's own sum."""
    function, inputs = OPERATIONS[name]
    expected = gradients(function, inputs)
    with Seen() as seen, TrainingSummation(sequential_matmul, sequential_total):
        found = gradients(function, inputs)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
    assert not seen.functions & set(_BACKWARD)


def test_a_moved_layer_moves_its_gradient():
    """Products of the backward pass are moved as well, by less than an ulp."""
    x, w = ROWS.float().detach(), LINEAR.float().detach().requires_grad_()

    def gradient():
        return torch.autograd.grad(F.linear(x, w).square().sum(), w)[0]

    plain = gradient()
    with MovedProducts(1):
        moved = gradient()
    change = ((moved - plain).norm() / plain.norm()).item()
    assert 0 < change < 2 * torch.finfo(torch.float32).eps
