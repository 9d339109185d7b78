import pytest

torch = pytest.importorskip("torch")

from torch import nn

from conformance.adapters.storages import StorageTracker

KIB = 2**10
SIDE = 16
"""A square of so many float32 is a KiB."""


def ones():
    """Return a KiB of ones."""
    return torch.ones(SIDE, SIDE)


@pytest.fixture
def tracker():
    """Return one that leaves nothing out."""
    return StorageTracker([])


def test_what_is_let_go_is_no_longer_counted(tracker):
    """The peak is what was alive at once, not the sum of what was made."""
    with tracker:
        for _ in range(5):
            kept = ones() + 1
    assert (tracker.peak, tracker.live) == (3 * KIB, KIB)
    del kept
    assert tracker.live == 0


def test_a_kept_reference_is_counted(tracker):
    """A tensor that somebody holds is alive, whoever it is."""
    cache = []
    with tracker:
        for _ in range(5):
            cache.append(ones())  # noqa: PERF401 - what a wrong port does
    assert tracker.live == tracker.peak == 5 * KIB


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.t()[2:],
        lambda x: x.add_(1).mul_(2),
        lambda x: nn.functional.relu(x, inplace=True).reshape(4, -1),
        lambda x: x.chunk(2)[1].expand(3, -1, -1),
    ],
    ids=["view", "in-place", "in-place-reshaped", "chunk"],
)
def test_views_and_operations_in_place_make_nothing(tracker, change):
    """They share the storage of what they are made of."""
    x = ones()
    tracker.count(x)
    with tracker:
        kept = change(x)
    assert kept is not None
    assert tracker.peak == KIB


def test_a_view_keeps_the_whole_storage_alive(tracker):
    """One row of a map holds the map."""
    with tracker:
        row = ones()[0]
    assert tracker.live == KIB
    del row
    assert tracker.live == 0


def test_a_resized_storage_is_counted_anew(tracker):
    """Growing a tensor grows what is held, shrinking its storage gives it back."""
    x = ones()
    tracker.count(x)
    with tracker:
        x.resize_(4 * SIDE, SIDE)
    assert tracker.live == 4 * KIB
    x.untyped_storage().resize_(0)
    with tracker:
        x.resize_(0)
    assert tracker.live == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_nothing_is_counted_twice_in_any_gradient_mode(tracker, mode):
    """Inference tensors are tensors."""
    with mode(), tracker:
        kept = ones() @ ones()
    assert (tracker.peak, tracker.live) == (3 * KIB, KIB)
    del kept


def test_what_the_backward_pass_needs_lives_on(tracker):
    """Autograd holds what it saved until the gradient is taken."""
    x = ones().requires_grad_()
    with tracker:
        loss = x.exp().exp().exp().sum()
        kept = tracker.live
        loss.backward()
    assert kept >= 3 * KIB
    assert tracker.live == KIB + 4  # the gradient, and the loss


class Two(nn.Module):
    """Two layers, the second of which makes a wider map."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(SIDE, SIDE)
        self.second = nn.Linear(SIDE, 4 * SIDE)

    def forward(self, x):
        """Map (16, 16) to (16, 64)."""
        return self.second(self.first(x))


def test_the_place_of_the_peak_is_named():
    """Operation and module at the peak, the most of each block; weights are apart."""
    network = Two()
    tracker = StorageTracker(network.parameters())
    names = {path: path for path, _ in network.named_modules()}
    with torch.no_grad(), tracker.watching(network, names, ["first"]), tracker:
        network(torch.ones(SIDE, SIDE))
    found = tracker.footprint()
    assert (found.at, found.where) == ("aten.addmm", "second")
    assert found.peak == 6 * KIB
    assert found.blocks == {"first": 2 * KIB}
    assert found.weights == sum(p.nbytes for p in network.parameters())


def test_a_peak_of_the_backward_pass_names_the_module_whose_gradient_is_taken():
    """There no module is called: what is known is whose output had its gradient last."""
    network = Two()
    tracker = StorageTracker(network.parameters())
    names = {path: path for path, _ in network.named_modules()}
    with tracker.watching(network, names, []), tracker:
        loss = network(torch.ones(SIDE, SIDE)).sum()
        torch.autograd.grad(loss, list(network.parameters()))
    assert tracker.footprint().where == "first (backward)"
