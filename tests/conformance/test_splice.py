"""Splice mode: where values are put in, in modules, and the cache they come from."""

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from conformance.adapters.torch_module import TorchComponent, observe
from conformance.case import find_case
from conformance.errors import PortError
from conformance.golden_files import load_golden
from conformance.traces import pack_path

SHAPE = (2, 3, 4, 5)
X = np.arange(120, dtype=np.float32).reshape(SHAPE)
VALUE = np.random.default_rng(0).standard_normal(SHAPE)


class Layer(nn.Module):
    """A layer that computes what a test wishes, and remembers what it was given."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(SHAPE))
        self.register_buffer("table", torch.zeros(SHAPE))

    def forward(self, *args):
        """Compute."""
        self.args, self.returned = args, self.function(self, *args)
        return self.returned


def doubled(_, x, *_rest):
    """Compute a tensor of the layer's own."""
    return x * 2


class Two(nn.Module):
    """One layer, then another that is also given a second argument."""

    def __init__(self, first=doubled, second=doubled):
        super().__init__()
        self.first, self.second = Layer(first), Layer(second)

    def forward(self, x):
        """Compute."""
        return self.second(self.first(x), "rest")


def run(module, probes=(), replace=None, dtype=torch.float32):
    """Run a module as a port's component would."""
    call = lambda m, t: {"out": m(t["x"])}  # noqa: E731 - as short as an adapter's
    component = TorchComponent(module, call, dtype)
    outputs, seen = component.run({"x": X}, probes, replace)
    return outputs["out"], seen


def test_seen_before_it_is_overwritten():
    """A probe shows what the layer computed; what comes after it reads the value put in."""
    out, seen = run(Two(), ["first", "second"], {"first": VALUE, "second": VALUE})
    assert np.array_equal(seen["first"], 2 * X)
    assert np.array_equal(seen["second"], 2 * VALUE.astype(np.float32))
    assert np.array_equal(out, VALUE.astype(np.float32))
    out, seen = run(Two(), ["second", "third", "second.input"], {"first": VALUE, "fourth": VALUE})
    assert np.array_equal(out, 2 * VALUE.astype(np.float32))
    assert sorted(seen) == ["second", "second.input"], "only what was asked for, and is there"


def handed(value):
    """Return the tensor among what a layer returned or was given."""
    if isinstance(value, dict):
        return value["y"]
    return value[0] if isinstance(value, tuple | list) else value


IN_PLACE = {
    "tensor": doubled,
    "channels-last": lambda _, x: (x * 2).to(memory_format=torch.channels_last),
    "transposed": lambda _, x: (x.mT.contiguous() * 2).mT,
    "half-of-a-tensor": lambda _, x: torch.cat([x, x])[2:],
    "the-input-itself": lambda _, x: x,
    "tuple": lambda _, x: (x * 2, "more"),
    "list": lambda _, x: [x * 2, "more"],
    "dict": lambda _, x: {"y": x * 2, "more": 1},
}


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
def test_own_tensor_is_overwritten_in_place(function):
    """Whoever holds the layer's tensor sees the value; strides and the rest of a tuple stay."""
    module = Two(function, lambda _, x, __: handed(x) * 1)
    out, _ = run(module, replace={"first": VALUE})
    assert module.second.args[0] is module.first.returned
    mine = handed(module.first.returned)
    assert np.array_equal(mine.numpy(), VALUE.astype(np.float32))
    assert mine.stride() == handed(function(None, torch.from_numpy(X))).stride()
    assert np.array_equal(out, VALUE.astype(np.float32))


HANDED_ON = {
    "parameter": lambda self, _: self.weight,
    "view-of-a-parameter": lambda self, _: self.weight.flatten(1).view(SHAPE),
    "buffer": lambda self, _: self.table,
    "expanded": lambda self, _: self.table[:1, :, :, :1].clone().expand(SHAPE),
    "other-shape": lambda _, x: x[:1] * 2,
    "wider": lambda _, x: x.double(),
    "narrower": lambda _, x: x.half(),
    "parameter-in-a-tuple": lambda self, _: (self.weight, "more"),
    "parameter-in-a-list": lambda self, _: [self.weight, "more"],
}


@pytest.mark.parametrize("function", HANDED_ON.values(), ids=HANDED_ON)
def test_what_cannot_be_overwritten_is_left_and_the_value_handed_on(function):
    """Weights, expanded tensors, other dtypes and shapes stay; the next layer reads the value."""
    module = Two(function, lambda _, x, __: handed(x) * 1)
    out, seen = run(module, ["first"], {"first": VALUE})
    assert np.array_equal(out, VALUE.astype(np.float32))
    assert np.array_equal(handed(module.first.returned).detach().numpy(), seen["first"])
    assert not module.first.weight.any()
    assert not module.first.table.any()
    given, returned = module.second.args[0], module.first.returned
    if isinstance(returned, tuple | list):
        assert given[1:] == returned[1:]


def test_a_narrow_island_loses_no_bit_of_the_value():
    """Where a float64 model returns float32, what is handed on is the float64 value itself."""
    out, _ = run(Two(lambda _, x: x.float()), replace={"first": VALUE}, dtype=torch.float64)
    assert np.array_equal(out, 2 * VALUE)


def test_what_cannot_be_handed_on_is_an_error():
    """A weight in an output class can neither be overwritten nor replaced."""
    module = Two(lambda self, _: {"y": self.weight}, lambda _, x, __: x["y"])
    with pytest.raises(PortError, match="the output of a module that returns dict"):
        run(module, replace={"first": VALUE})


def test_an_input_is_overwritten_where_it_lies():
    """What enters a layer is overwritten for all who read it: the residual stream too."""

    class Residual(Two):
        def forward(self, x):
            hidden = self.first(x)
            return hidden + self.second(hidden, "rest")

    module = Residual()
    out, seen = run(module, ["second.input"], {"second.input": VALUE})
    assert np.array_equal(seen["second.input"], 2 * X)
    assert np.array_equal(out, 3 * VALUE.astype(np.float32))
    assert module.second.args[1] == "rest"


def test_an_input_that_cannot_be_overwritten():
    """A weight that enters a layer stays; the layer is given the value and its other arguments."""
    module = Two(lambda self, _: self.weight)
    out, _ = run(module, replace={"second.input": VALUE})
    assert np.array_equal(out, 2 * VALUE.astype(np.float32))
    assert module.second.args[1] == "rest"
    assert not module.first.weight.any()


@pytest.mark.parametrize("name", ["first", "first.input"])
def test_a_probe_that_fires_twice_is_an_error(name):
    """A layer that runs twice has no one value."""

    class Twice(Two):
        def forward(self, x):
            return self.first(self.first(x))

    module = Twice()
    with pytest.raises(PortError, match=f"probe {name} fired more than once"):
        run(module, [name])
    assert run(module, ["second"])[1] == {}, "a layer that does not run shows nothing"
    with observe(module, [name, "nowhere"], lambda *_: None) as fired:
        module(torch.ones(1))
    assert fired == {name: 2}
    assert not module.first._forward_hooks
    assert not module.first._forward_pre_hooks


TEXT = find_case("text_encoder/tiny/base")


@pytest.fixture(scope="module")
def truth():
    """Return the oracle's values of a small case."""
    live = pytest.importorskip("conformance.recording.live")
    return live.Reference(TEXT.component, TEXT.variant).truth(TEXT)


@pytest.fixture
def ask(truth, tmp_path, monkeypatch):
    """Return a function that asks for these values, and says how often the oracle ran so far."""
    live = pytest.importorskip("conformance.recording.live")
    asked = []
    monkeypatch.setattr(live.Reference, "truth", lambda _, case: asked.append(case) or truth)
    monkeypatch.setenv("SD1_CACHE", str(tmp_path / "cache"))

    def call():
        values = live.LiveTraces()(TEXT, load_golden(TEXT))
        for found, wanted in ((values.probes, truth.probes), (values.outputs, truth.outputs)):
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[n], t.numpy()) for n, t in wanted.items())
        return len(asked)

    return call


def cached(tmp_path):
    """Return the files in the cache."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_oracle_is_asked_once(ask, tmp_path, monkeypatch):
    """Values are kept on disk, by case, under a name for all that they depend on."""
    assert ask() == 1
    (path,) = cached(tmp_path)
    assert path == pack_path(path.parents[2], TEXT)
    os.utime(path, (1, 1))
    assert ask() == 1
    assert path.stat().st_mtime > 1, "what is used is not what is deleted first"
    monkeypatch.setattr("conformance.oracle.versions", lambda: {"torch": "0"})
    assert ask() == 2
    assert [p.parents[3] for p in cached(tmp_path)] == [tmp_path / "cache" / "sd1-traces"] * 2


DAMAGE = {"cut": lambda path: os.truncate(path, 1000), "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_anew(ask, tmp_path, damage):
    """What cannot be read is computed and written again."""
    ask()
    (path,) = cached(tmp_path)
    whole = path.read_bytes()
    damage(path)
    assert ask() == 2
    assert cached(tmp_path) == [path]
    assert path.read_bytes() == whole


def test_no_cache(ask, tmp_path, monkeypatch):
    """With an empty variable nothing is kept; nor where there can be no folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SD1_CACHE", "")
    assert [ask(), ask()] == [1, 2]
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("SD1_CACHE", "file")
    Path("file").write_text("")
    assert [ask(), ask()] == [3, 4]


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "cut"])
def test_a_read_only_cache_costs_time_only(ask, tmp_path, monkeypatch, broken):
    """A cache that cannot be written is read, and what is broken in it is computed."""
    ask()
    if broken:
        os.truncate(cached(tmp_path)[0], 1000)

    def refuse(*_, **__):
        raise PermissionError

    for name in ("touch", "mkdir", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    assert ask() == 1 + broken


@pytest.mark.parametrize("name", [None, "model.safetensors"], ids=["own", "foreign"])
def test_the_cache_keeps_its_size(ask, tmp_path, monkeypatch, name):
    """What was not used for longest goes first; what the cache did not write is not its own."""
    ask()
    (path,) = cached(tmp_path)
    size = path.stat().st_size
    others = [path.with_name(f"{i}.safetensors") for i in range(4)]
    foreign = {tmp_path / "cache" / name} if name else set()
    for age, other in enumerate([*others, *foreign]):
        other.write_bytes(bytes(size))
        os.utime(other, (100 - age, 100 - age))
    path.unlink()
    monkeypatch.setattr("conformance.recording.live.CACHE_BYTES", 3 * size + 1)
    ask()
    assert set(cached(tmp_path)) == {path, *others[:2], *foreign}
