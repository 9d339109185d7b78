"""The machine runs what describes data, and nothing else."""

import collections
import contextlib
import os
import pickle
import pickletools
import struct
import sys

import pytest

from sd1_weights.errors import CheckpointError
from sd1_weights.pickles import Global, Names, Placeholder, described, shown, unpickled

NAMES = Names(
    makers={"collections.OrderedDict": lambda _: {}, "made.sum": sum},
    values=frozenset({"torch.FloatStorage"}),
    inert=frozenset({"lightning.ModelCheckpoint", "numpy.dtype"}),
    persistent=lambda value: ("outside", value),
)


def run(data):
    """Run a pickle that stands for a file's."""
    return unpickled(data, NAMES, "weights.ckpt: data.pkl")


def text(value, code=b"X"):
    """Return a text as the opcode writes it."""
    return code + struct.pack("<I", len(value)) + value.encode()


def refusal(data):
    """Return why a pickle is refused."""
    with pytest.raises(CheckpointError) as caught:
        run(data)
    message = str(caught.value)
    assert message.startswith("weights.ckpt: data.pkl: ")
    assert message.isprintable()
    assert len(message) < 400
    return message.removeprefix("weights.ckpt: data.pkl: ")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_out_as_python_reads_them(protocol):
    """Numbers, texts, bytes and containers, in each protocol that is read."""
    shared = ["a", "b" * 300]
    value = {
        "epoch": 3,
        "big": [255, 256, 65536, -1, 2**31, -(2**40), 2**63, 1 << 3000],
        "lr": 1e-5,
        "on": (True, False, None),
        "name": ("", "ü", "x" * 70000),
        "shared": (shared, shared, (shared,)),
        7: {"empty": ([], {}, ())},
    }
    assert run(pickle.dumps(value, protocol)) == value


def test_bytes_and_sets_of_protocol_4():
    """Bytes come as they are; a set as a list, for its members are not hashed."""
    value = run(pickle.dumps({"raw": b"\0" * 300, "few": b"ab", "set": {"x"}}, 4))
    assert value == {"raw": b"\0" * 300, "few": b"ab", "set": ["x"]}


def test_ordered_dict_with_attributes_is_a_dict():
    """`_metadata`, which torch puts on a state dict, is dropped."""
    names = collections.OrderedDict(b=1, a=2)
    names._metadata = {"": {"version": 1}}
    value = run(pickle.dumps(names, 2))
    assert value == {"b": 1, "a": 2}
    assert list(value) == ["b", "a"]


def test_persistent_id_and_maker_get_their_values():
    """What a pickle refers to outside, and what a name means, are the caller's to say."""
    assert run(b"\x80\x02K\x05Q.") == ("outside", 5)
    assert run(b"\x80\x02cmade\nsum\n(K\x01K\x02tR.") == 3


def test_inert_names_swallow_all_that_is_done_to_them():
    """A call, an object, attributes, entries and members leave a placeholder."""
    name = b"clightning\nModelCheckpoint\n"
    expected = Placeholder(Global("lightning.ModelCheckpoint"))
    for steps in (b")R", b")\x81", b")R}b", b")R(K\x01K\x02u", b")RK\x01K\x02s", b")RK\x01a"):
        assert run(b"\x80\x02" + name + steps + b".") == expected


def test_a_name_may_be_a_key():
    """As ModelCheckpoint is one of `callbacks`."""
    value = run(b"\x80\x02}clightning\nModelCheckpoint\nK\x01s.")
    assert value == {Global("lightning.ModelCheckpoint"): 1}


class Runs:
    """Asks to run a call when it is unpickled."""

    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        """Return the call."""
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("call", "argument"),
    [(os.mkdir, "PATH"), (eval, "__import__('os').mkdir('PATH')"), (exec, "open('PATH', 'w')")],
    ids=["mkdir", "eval", "exec"],
)
def test_a_call_is_refused_by_name_and_place_and_not_run(tmp_path, protocol, call, argument):
    """By GLOBAL in the older protocols, by STACK_GLOBAL in the newer."""
    made = tmp_path / "made"
    data = pickle.dumps({"state_dict": Runs(call, argument.replace("PATH", str(made)))}, protocol)
    message = refusal(data)
    assert f".{call.__name__}: refused, nothing was run" in message
    assert not made.exists()
    place = int(message.split()[1].rstrip(":"))
    assert data[place : place + 1] == (b"c" if protocol < 4 else b"\x93")
    pickle.loads(data)  # noqa: S301 - it is an attack: Python's own unpickler falls for it
    assert made.exists()


CALLS = {
    "reduce": b"cos\nmkdir\nPATH\x85R.",
    "reduce-from-stack": text("os") + text("mkdir") + b"\x93PATH\x85R.",
    "in-a-module": text("shutil") + text("os.mkdir") + b"\x93PATH\x85R.",
    "inst": b"(PATHios\nmkdir\n.",
    "obj": b"(cos\nmkdir\nPATHo.",
    "before-the-end": b"cos\nmkdir\nPATH\x85R0}.",
    "new-object": b"cpathlib\nPath\nPATH\x85\x81.",
    "set-state": b"ccollections\nCounter\n)\x81}PATHK\x01sb.",
    "nested-name": text("collections") + text("OrderedDict.fromkeys") + b"\x93PATH\x85R.",
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call_is_refused_and_nothing_is_run(tmp_path, name):
    """Among them opcodes that look up and call at once."""
    made = tmp_path / "made"
    data = b"\x80\x04" + CALLS[name].replace(b"PATH", text(str(made)))
    assert "refused, nothing was run" in refusal(data)
    assert not made.exists()
    pickle.loads(data)  # noqa: S301 - each of them is accepted by Python's own unpickler
    assert made.exists() == (b"mkdir" in data)


FOREIGN = {
    "INST (os mkdir)": b"(" + text("x") + b"ios\nmkdir\n.",
    "OBJ": b"(" + text("x") + b"o.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "NEWOBJ_EX": b")}\x92.",
    "PERSID (12)": b"P12\n.",
    "FROZENSET": b"(\x91.",
    "NEXT_BUFFER": b"\x97.",
    "BYTEARRAY8": b"\x96\x02\0\0\0\0\0\0\0ab.",
    "INT": b"I12\n.",
}


@pytest.mark.parametrize("opcode", FOREIGN, ids=lambda opcode: opcode.split()[0])
def test_opcodes_that_torch_does_not_write_are_refused_by_name(opcode):
    """Those which make objects, and those of old or new protocols."""
    message = refusal(b"\x80\x04" + FOREIGN[opcode])
    assert f"has opcode {opcode}, which torch.save does not write: refused" in message


BROKEN = {
    "empty": (b"", "cut off or broken"),
    "no-stop": (b"\x80\x02N", "cut off or broken"),
    "unknown-opcode": (b"\x80\x02\xff.", "cut off or broken"),
    "long-text": (b"\x80\x02X\xff\xff\xff\x7fab.", "cut off or broken"),
    "giant-bytes": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fab.", "cut off or broken"),
    "giant-text": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fab.", "cut off or broken"),
    "giant-bytearray": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fab.", "cut off or broken"),
    "negative-number": (b"\x80\x02\x8b\xff\xff\xff\xff.", "cut off or broken"),
    "bad-utf8": (b"\x80\x02X\x02\0\0\0\xff\xfe.", "cut off or broken"),
    "bad-name": (b"\x80\x02c\xff\xfe\nx\n.", "cut off or broken"),
    "backslash": (b"\x80\x02ca\\q\nx\n.", "cut off or broken"),
    "text-number": (b"\x80\x02Iabc\n.", "cut off or broken"),
    "protocol-6": (b"\x80\x06N.", "protocol 6, expected 2 to 5"),
    "more-after": (b"\x80\x02N.N.", "stops 2 bytes before its end"),
    "nothing-left": (b"\x80\x02.", "takes a value where there is none"),
    "too-much-left": (b"\x80\x02NN.", "leaves more than one value"),
    "mark-left": (b"\x80\x02N(N.", "leaves more than one value"),
    "no-mark": (b"\x80\x02Nt.", "looks for a mark"),
    "under-mark": (b"\x80\x02N(0.", "takes a value where there is none"),
    "pop": (b"\x80\x020.", "takes a value where there is none"),
    "dup": (b"\x80\x022.", "takes a value where there is none"),
    "tuple3": (b"\x80\x02NN\x87.", "takes a value where there is none"),
    "put": (b"\x80\x02q\x01.", "takes a value where there is none"),
    "get": (b"\x80\x02h\x07.", "recalls value 7"),
    "get-far": (b"\x80\x02j\xff\xff\xff\xff.", "recalls value 4294967295"),
    "append-to-dict": (b"\x80\x02}Na.", "gives a dict for what is appended to"),
    "append-to-tuple": (b"\x80\x02)(Ne.", "gives a tuple for what is appended to"),
    "item-of-list": (b"\x80\x02]NNs.", "gives a list for what gets entries"),
    "odd-items": (b"\x80\x02}(K\x01u.", "an entry without a value"),
    "call-text": (b"\x80\x02X\x01\0\0\0x)R.", "gives the text 'x' for what is called"),
    "call-lambda": (b"\x80\x02K\x05)R.", "gives the number 5 for what is called"),
    "call-made": (b"\x80\x02cnumpy\ndtype\n)R)R.", "gives a numpy.dtype for what is called"),
    "call-storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "which is no function"),
    "call-list": (b"\x80\x02cnumpy\ndtype\n]R.", "gives a list for arguments"),
    "build-list": (b"\x80\x02]}b.", "sets attributes of a list"),
    "build-name": (b"\x80\x02cnumpy\ndtype\n}b.", "sets attributes of numpy.dtype"),
    "name-of-number": (b"\x80\x04K\x01K\x02\x93.", "gives the number 1 for a module"),
    "name-of-none": (b"\x80\x04X\x01\0\0\0aN\x93.", "gives None for a name"),
    "twice": (b"\x80\x02}(X\x01\0\0\0wNX\x01\0\0\0wNu.", "the entry of the text 'w' twice"),
    "twice-later": (b"\x80\x02}K\x01NsK\x01Ns.", "the entry of the number 1 twice"),
    "list-key": (b"\x80\x02}]Ns.", "has a list as a key"),
    "tuple-key": (b"\x80\x02})Ns.", "has a tuple as a key"),
    "bool-key": (b"\x80\x02}\x88Ns.", "has a bool as a key"),
    "float-key": (b"\x80\x02}G\0\0\0\0\0\0\0\0Ns.", "has a float as a key"),
    "long-key": (b"\x80\x02}\x8a\xff" + b"\x7f" * 255 + b"Ns.", "has an int as a key"),
    "odd-name": (b"\x80\x02c\x07a\n" + b"b" * 500 + b"\n.", r"\x07a.bbb"),
}


@pytest.mark.parametrize(("data", "why"), BROKEN.values(), ids=BROKEN)
def test_broken_pickles_get_one_clear_line(data, why):
    """Whatever is wrong, it is the same kind of error, and short."""
    assert why in refusal(data)


def test_cut_anywhere_it_is_refused():
    """Every prefix of a pickle lacks its end."""
    data = pickle.dumps({"a": [1, 2.5, "three", (b"4", None)], "b": {"c": "d" * 300}}, 4)
    for size in range(len(data)):
        refusal(data[:size])


def test_every_byte_flipped_gives_a_value_or_the_error():
    """No other kind of error comes out of a damaged pickle."""
    names = collections.OrderedDict((f"layer.{i}", [i, i / 2, "x"]) for i in range(8))
    for protocol in (2, 4):
        data = bytearray(pickle.dumps({"state_dict": names}, protocol))
        for place in range(len(data)):
            for flip in (0x01, 0x20, 0x80, 0xFF):
                damaged = bytes([*data[:place], data[place] ^ flip, *data[place + 1 :]])
                with contextlib.suppress(CheckpointError):
                    run(damaged)


def test_a_far_memo_takes_no_room():
    """LONG_BINPUT to 2**31: the index is a key, not a length."""
    assert run(b"\x80\x02K\x05r\x00\x00\x00\x800j\x00\x00\x00\x80.") == 5


DEEP = 20 * sys.getrecursionlimit()
NESTED = {
    "a list": b"]" * DEEP + b"a" * (DEEP - 1),
    "a tuple": b")" + b"\x85" * DEEP,
    "a tuple by marks": b"(" * DEEP + b"t" * DEEP,
    "a dict": b"}" + b"K\x01}" * DEEP + b"s" * DEEP,
}


@pytest.mark.parametrize("kind", NESTED)
def test_nesting_deeper_than_python_recurses(kind):
    """Depth costs memory, not the stack of the interpreter."""
    assert described(run(b"\x80\x02" + NESTED[kind] + b".")) == kind.removesuffix(" by marks")


def test_billion_laughs_stay_short():
    """Ten references to ten references to ...: shared, never written out, not a key."""
    laughs = b"]q\x00(" + b"K\x01" * 10 + b"eq\x01"
    for level in range(1, 40):
        again = b"h" + bytes((level,))
        laughs += b"0](" + again * 10 + b"eq" + bytes((level + 1,))
    value = run(b"\x80\x02" + laughs + b".")
    assert len(value) == 10
    assert described(value) == "a list"
    assert refusal(b"\x80\x02" + laughs + b"0}(h\x28\x85Nu.").endswith("has a tuple as a key")


def test_what_contains_itself_comes_out():
    """A list in itself is a list."""
    value = run(b"\x80\x02]q\x00h\x00a.")
    assert value[0] is value


def test_texts_from_a_file_fit_into_a_line():
    """Long and unprintable ones are cut and escaped."""
    assert shown("conv_in.weight") == "conv_in.weight"
    assert shown("a\nb\ud800") == r"a\nb\ud800"
    assert len(shown("x" * 10**6)) < 110


def test_all_handlers_are_opcodes_of_python():
    """A misspelt opcode would never be run."""
    from sd1_weights.pickles import _HANDLERS

    assert _HANDLERS.keys() <= {opcode.name for opcode in pickletools.opcodes}
