"""What a port says of itself, and what it is told where that is wrong."""

from __future__ import annotations

import pytest

from conformance import protocol
from conformance.errors import PortError
from conformance.port import Hello, greet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"components": ["", "unet"]}, ": field components.0 is empty"),
        ({"name": None}, ": field name is null, and has to be a string"),
        ({"name": "x" * 201}, ": field name is longer than 200 characters"),
        ({"version": 1}, ": field version is 1, and has to be a string"),
        (
            {"arithmetics": "float32"},
            ': field arithmetics is "float32", and has to be a list: ["float32"]',
        ),
        ({"probes": "no"}, ': field probes is "no", and has to be true or false'),
        ({"layout": "NHCW"}, ': field layout is "NHCW": choose from NCHW, NHWC'),
        ({"arithmetic": []}, " has a field 'arithmetic', which is none: did you mean arithmetics?"),
        ({"colour": "red"}, " has a field 'colour', which is none: choose from name, version, "),
        ({"components": ["unet", "unet"]}, '["unet", "unet"]: one of them is there twice'),
        ({"components": ["unett"]}, " offers an unknown component 'unett': the nearest is unet"),
        ({"arithmetics": ["float8"]}, " offers an unknown arithmetic 'float8': the nearest is flo"),
        ({"backends": ["spda"]}, " offers an unknown backend 'spda': the nearest is sdpa"),
        ({"variants": ["sd1", "tinny"]}, " an unknown variant 'tinny': the nearest is tiny"),
        ({"variants": ["x*"]}, " offers an unknown variant 'x*': "),
        ({"details": {1: object()}}, "is no JSON"),
        ({"details": {"cores": 3}}, ": field details.cores is 3, and has to be a string"),
        (
            {"shapes": {"unet": {"sample": [[2, "any"]]}}},
            ': field shapes.unet.sample.0.1 is "any", and has to be a whole number or null',
        ),
    ],
)
def test_offers(change: dict, message: str, fake) -> None:
    """What a port says of itself in a dict is checked, field by field."""
    right = {"name": "p", "version": "1", "components": ["unet"], "arithmetics": ["float32"]}
    assert greet(fake(offers=right)) == Hello("p", "1", ("unet",))
    with pytest.raises(PortError, match=r"^hello\(\) of the port") as raised:
        greet(fake(offers=right | change))
    assert message in str(raised.value)


@pytest.mark.parametrize("field", ["name", "version", "components"])
def test_a_field_is_missing(fake, field: str) -> None:
    """Three have to be there."""
    offer = {"name": "p", "version": "1", "components": ["unet"]}
    kind = {"components": "a list"}.get(field, "a string")
    del offer[field]
    with pytest.raises(PortError, match=f"^hello.. of the port lacks the field '{field}', {kind}"):
        greet(fake(offers=offer))


def test_a_hello_is_checked_as_a_dict_is(fake) -> None:
    """One of conformance.port too: its lists become tuples, what is none is told."""
    assert greet(fake(offers=Hello("p", "1", ["unet"]))) == Hello("p", "1", ("unet",))
    for offer, told in (
        (Hello("p", 1.0, ("unet",)), "field version is 1.0, and has to be a string"),
        (Hello("p", "1", "unet"), 'field components is "unet", and has to be a list'),
        (Hello("p", "1", ("unet",), variants=("tinny",)), "unknown variant 'tinny'"),
    ):
        with pytest.raises(PortError) as raised:
            greet(fake(offers=offer))
        assert told in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "reply", "told"),
    [
        ("nothing", {"a": 1}, 'is {"a": 1}, and has to be {}'),
        (
            "reply",
            {"id": 1},
            "has to have the `id` of the request and one of `ok`, `error` and",
        ),
        ("reply", {"id": "1", "ok": {}}, 'field id is "1", and has to be that of the request'),
        ("answer", {"outputs": "o", "probs": "p"}, "did you mean probes?"),
    ],
    ids=["fields", "empty", "id", "misspelt"],
)
def test_replies(kind: str, reply: dict, told: str) -> None:
    """What a program replies wrongly is told in plain words."""
    with pytest.raises(PortError) as raised:
        protocol.check(kind, reply, "the reply")
    assert told in str(raised.value)
