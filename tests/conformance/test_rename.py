"""Rename tables without torch: rows, axes, and the modules that are canonical ones."""

import re

import numpy as np
import pytest

from conformance.adapters.axes import Axes, MisfitError, Source, Turn, fitted
from conformance.adapters.rename import Place, Rename, Table, table_of
from conformance.errors import PortError

BAD_ROWS = {
    "pattern": ({"pattern": "("}, r"Rename\('\(', 'b'\): the pattern is no regular expression"),
    "part": ({"part": (2, 2)}, r"part is \(which, of how many\), counted from 0"),
    "no-arrow": ({"axes": "o i"}, "axes 'o i': write the port's, an arrow and the canonical ones"),
    "other-axes": ({"axes": "o i -> o h"}, "axes 'o i -> o h': write the port's"),
    "two-arrows": ({"axes": "o i -> o i -> i o"}, "write the port's, an arrow and the canonical"),
    "axis-twice": ({"axes": "o o -> o o"}, "axes 'o o -> o o': o is named twice"),
    "number": ({"axes": "o 3 -> 3 o"}, "an axis of length 1 is a 1"),
    "second": ({"axes": ("o i -> i o", "o")}, "axes 'o': write the port's"),
}


@pytest.mark.parametrize(("fields", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row(fields, message):
    """What cannot be read is named when the row is written."""
    with pytest.raises(PortError, match=message):
        Rename(**{"pattern": "a", "canonical": "b"} | fields)


def test_bad_group():
    """A replacement that refers to a group that is not there names the row."""
    with pytest.raises(PortError, match=r"Rename\('a', '\\\\1'\): invalid group reference 1"):
        Table([Rename("a", r"\1")]).translate("cat")


W = np.arange(24.0).reshape(4, 6)
K = np.arange(3 * 2 * 5 * 7.0).reshape(3, 2, 5, 7)
LAYOUTS = {
    "transposed": ("i o -> o i", W, W.T),
    "kernel": ("h w i o -> o i h w", K, K.transpose(2, 3, 1, 0)),
    "as-convolution": ("o i 1 1 -> o i", W, W[:, :, None, None]),
    "as-linear": ("o i -> o i 1 1", W[:, :, None, None], W),
    "as-transposed-convolution": ("1 1 i o -> o i", W, W.T[None, None]),
    "heads": ("i h d -> (h d) i", W, W.T.reshape(6, 2, 2)),
    "heads-merged": ("(h d) i -> h i d", K[0], K[0].swapaxes(1, 2).reshape(14, 5)),
    "same": ("o i -> o i", W, W),
}


@pytest.mark.parametrize(("text", "canonical", "own"), LAYOUTS.values(), ids=LAYOUTS)
def test_axes(text, canonical, own):
    """A canonical array is laid out as the port has it, every element in its place."""
    laid_out = Axes.parse(text).to_own(canonical, own.shape)
    assert laid_out.shape == own.shape
    assert np.array_equal(laid_out, own)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("i o -> o i", (4, 6)),
        ("i o -> o i", (6, 4, 1)),
        ("o i 1 1 -> o i", (4, 6, 1, 2)),
        ("o i 1 1 -> o i", (4, 6, 0, 1)),
        ("i h d -> (h d) i", (6, 3, 2)),
        ("(a b) o -> o (a b)", (6, 4)),
    ],
    ids=["not-square", "too-many", "two-long", "empty", "heads", "lengths-unknown"],
)
def test_axes_that_do_not_fit(text, shape):
    """Lengths that contradict each other, or cannot be told, are a misfit."""
    with pytest.raises(MisfitError):
        Axes.parse(text).to_own(W, shape)


def test_axes_take_the_kernel_of_as_many():
    """Of several layouts a parameter takes the one of as many axes as it has; a bias takes none."""
    rows = [Rename(r"\.kernel$", ".weight", ("i o -> o i", "h w i o -> o i h w"))]
    shapes = {"a.kernel": (6, 4), "b.kernel": (5, 7, 2, 3), "a.bias": (4,)}
    weights = {"a.weight": W, "b.weight": K, "a.bias": W[:, 0]}
    sources = Table(rows).sources(shapes, weights)
    drawn = {name: sources[name].draw(weights, shape) for name, shape in shapes.items()}
    assert np.array_equal(drawn["a.kernel"], W.T)
    assert np.array_equal(drawn["b.kernel"], K.transpose(2, 3, 1, 0))
    assert np.array_equal(drawn["a.bias"], W[:, 0])
    assert all(array.flags.c_contiguous for array in drawn.values())


def test_joined_then_laid_out():
    """Several are joined along the first canonical axis; of one, a part is taken there."""
    rows = [
        Rename(r"qkv", ("q", "k", "v"), "i o -> o i"),
        Rename(r"half_(\d)", "gate", part=(1, 2)),
    ]
    table = Table(rows)
    joined = table.translate("qkv.weight").draw(
        {"q.weight": W, "k.weight": W + 100, "v.weight": W + 200}, (6, 12)
    )
    assert np.array_equal(joined, np.concatenate([W, W + 100, W + 200]).T)
    half = table.translate("half_1.weight").draw({"gate.weight": W}, (2, 6))
    assert np.array_equal(half, W[2:])


@pytest.mark.parametrize(
    ("source", "shape", "message"),
    [
        (Source(("a", "b")), (9, 6), r"has shape (9, 6), its weight is a (4, 6) + b (4, 5)"),
        (
            Source(("a",), part=(0, 3)),
            (1, 6),
            r"has shape (1, 6), its weight is a (4, 6), part 0 of",
        ),
        (Source(("a",)), (6, 4), r"has shape (6, 4), its weight is a (4, 6)"),
    ],
    ids=["joined", "part", "transposed"],
)
def test_misfit_says_both_shapes(source, shape, message):
    """A shape that cannot be made is named with what there is."""
    with pytest.raises(MisfitError, match=f"^{re.escape(message)}"):
        source.draw({"a": W, "b": W[:, 1:]}, shape)


def test_rows_follow_one_another():
    """Each row is applied to what those before it made; a function of the match may count."""
    rows = [
        Rename(r"^up\.(\d)\.", lambda m: f"up_blocks.{3 - int(m[1])}."),
        Rename(r"^up_blocks\.3\.block", "up_blocks.3.resnets"),
        Rename("nothing", "else"),
    ]
    matched = set()
    source = Table(rows).translate("up.0.block.1.bias", matched)
    assert (source.names, matched) == (("up_blocks.3.resnets.1.bias",), {0, 1})
    assert Table(rows).translate("mid.bias").names == ("mid.bias",)


def sources_of(rows, parameters, weights, modules=()):
    """Find the sources of parameters of one axis."""
    return Table(rows).sources(dict.fromkeys(parameters, (1,)), weights, modules)


def test_optional_and_module_rows_are_not_idle():
    """A row for a module path matches something; an optional one need not."""
    rows = [Rename("^sinus$", "time_proj"), Rename("shortcut", "conv_shortcut", optional=True)]
    assert sources_of(rows, ["a.bias"], ["a.bias"], ["sinus"])
    with pytest.raises(PortError, match=r"^names do not fit: 1 of 2 rows match nothing"):
        sources_of(rows, ["a.bias"], ["a.bias"], ["cosines"])


def test_renamed_names_are_shown():
    """A name that the table makes wrong is shown with what it made of it."""
    with pytest.raises(PortError, match=r"1 of 1 parameters have no weight \(x\.w as y\.w\)"):
        sources_of([Rename("x", "y")], ["x.w"], ["z.w"])


PROBES = ["block", "block.norm", "block.norm.input", "block.q", "block.k", "time_proj"]
WEIGHTS = ["block.norm.weight", "block.q.weight", "block.k.weight"]
PLACES = {
    "same-names": ([], WEIGHTS, ["block", "block.norm", "block.q", "block.k"], {
        "block": "block", "block.norm": "block.norm", "block.q": "block.q", "block.k": "block.k"
    }),
    "rows-that-end-in-a-dot": (
        [Rename(r"^b\.", "block."), Rename(r"\.n\.", ".norm.")],
        ["b.n.weight", "b.q.weight", "b.k.weight"],
        ["b", "b.n", "b.q", "b.k"],
        {"block": "b", "block.norm": "b.n", "block.q": "b.q", "block.k": "b.k"},
    ),
    "from-its-parameters": (
        [Rename(r"^n\.scale$", "block.norm.weight"), Rename(r"^q\.weight", "block.q.weight")],
        ["n.scale", "q.weight", "block.k.weight"],
        ["n", "q", "block.k"],
        {"block.norm": "n", "block.q": "q", "block.k": "block.k"},
    ),
    "fused": (
        [Rename("qk", ("q", "k"))],
        ["block.norm.weight", "block.qk.weight"],
        ["block", "block.norm", "block.qk"],
        {"block": "block", "block.norm": "block.norm"},
    ),
    "halves": (
        [Rename("q0", "q", part=(0, 2)), Rename("q1", "q", part=(1, 2))],
        ["block.norm.weight", "block.q0.weight", "block.q1.weight", "block.k.weight"],
        ["block", "block.q0", "block.q1", "block.k"],
        {"block": "block", "block.k": "block.k"},
    ),
    "a-layer-lies-elsewhere": (
        [Rename("^norm", "block.norm")],
        ["norm.weight", "block.q.weight", "block.k.weight"],
        ["norm", "block", "block.q"],
        {"block.norm": "norm", "block.q": "block.q"},
    ),
    "the-innermost": (
        [Rename(r"\.inner\b", "")],
        ["block.norm.weight", "block.q.inner.weight", "block.k.weight"],
        ["block.q", "block.q.inner"],
        {"block.q": "block.q.inner"},
    ),
    "left-out": (
        [Rename("^block$", None)],
        WEIGHTS,
        ["block", "block.q"],
        {"block.q": "block.q"},
    ),
    "without-parameters": (
        [Rename("^sinus$", "time_proj")], WEIGHTS, ["sinus"], {"time_proj": "sinus"}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "parameters", "modules", "places"), PLACES.values(), ids=PLACES)
def test_modules_that_are_canonical(rows, parameters, modules, places):
    """A module is one by its path or its own parameters, if it holds exactly that one's."""
    table = Table(rows)
    sources = table.sources(dict.fromkeys(parameters, (1,)), WEIGHTS, modules)
    found = table.places(modules, sources, PROBES)
    assert found == {canonical: Place(path) for canonical, path in places.items()}


def test_convolution_has_maps_and_linear_layer_tokens():
    """Axes of length 1 say that a layer has maps where the reference has tokens, or the reverse."""
    rows = [
        Rename(r"\.q\b", ".q", "o i 1 1 -> o i"),
        Rename(r"\.k\b", ".k", "o i -> o i 1 1"),
        Rename(r"\.norm\b", ".norm", "1 1 i -> 1 1 i"),
    ]
    shapes = dict(zip(WEIGHTS, [(1, 1, 2), (3, 2, 1, 1), (3, 2)], strict=True))
    sources = Table(rows).sources(shapes, WEIGHTS)
    places = Table(rows).places(["block.q", "block.k", "block.norm"], sources, PROBES)
    assert places["block.q"].turn == Turn(port_has_map=True)
    assert places["block.k"].turn == Turn(port_has_map=False)
    assert places["block.norm"].turn is None


MAP = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
TOKENS = MAP.transpose(0, 2, 3, 1).reshape(2, 20, 3)


def test_maps_and_tokens_turn():
    """A map becomes tokens, tokens a map, pixels in the same order; values come back so."""
    kernel, linear = Turn(port_has_map=True), Turn(port_has_map=False)
    assert np.array_equal(kernel.to_canonical(MAP), TOKENS)
    assert np.array_equal(kernel.to_own(TOKENS, MAP.shape), MAP)
    assert np.array_equal(linear.to_canonical(TOKENS), MAP.reshape(2, 3, 20))
    assert np.array_equal(linear.to_canonical(TOKENS.reshape(2, 4, 5, 3)), MAP.reshape(2, 3, 20))
    assert np.array_equal(linear.to_own(MAP, TOKENS.shape), TOKENS)


def test_pixels_are_fitted():
    """A map's pixels may be in one axis or two; what is no map of the same channels stays."""
    assert fitted(MAP.reshape(2, 3, 20), MAP.shape).shape == MAP.shape
    assert fitted(MAP, (2, 3, 20)).shape == (2, 3, 20)
    assert fitted(TOKENS, MAP.shape) is TOKENS
    assert fitted(MAP, (2, 3, 5, 4)) is MAP


def test_preset_among_rows():
    """A preset's name stands for its rows, which need not match."""
    table = table_of([Rename(r"^wrapped\.", ""), "compvis"], "unet")
    assert table.translate("wrapped.model.diffusion_model.out.2.bias").names == ("conv_out.bias",)
    assert [row.optional for row in table.rows] == [False] + [True] * (len(table.rows) - 1)
