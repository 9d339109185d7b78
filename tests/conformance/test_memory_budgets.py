import json
import re
from dataclasses import replace

import pytest

from conformance import cli
from conformance.bench.record import read
from conformance.errors import GoldenError, UsageError
from conformance.execution import MEMORY
from conformance.memory.budgets import PATH, Budgets, budgets
from conformance.memory.cases import config_id, configurations, memory_cases
from conformance.memory.footprint import Footprint
from conformance.memory.judge import exceeded
from conformance.memory.recording import record
from conformance.memory.sizes import mib, read_size
from conformance.memory.table import Line, pictures, table

FOUND = Footprint(300, 10, "aten.mul", "b.ff", {"a": 200, "b": 300})
PAIR = configurations()[0]
KEY = config_id(*PAIR)


def test_the_file_is_what_was_written(tmp_path):
    """One configuration of one port a line, sorted; what is read is what was meant."""
    own = Budgets({"2.13": {"z[x]": {"p": FOUND}, "a[x]": {"p": FOUND, "o": FOUND}}}, {"2.13": {}})
    own.write(tmp_path / "budgets.json")
    assert Budgets.read(tmp_path / "budgets.json") == own
    lines = (tmp_path / "budgets.json").read_text("utf-8").splitlines()
    assert [line.split(":")[0].strip() for line in lines if '"peak"' in line] == [
        '"o"',
        '"p"',
        '"p"',
    ]


def test_the_file_in_the_package_is_as_it_was_recorded(tmp_path):
    """Nobody edits it by hand: it is as its only writer writes it."""
    budgets().write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == PATH.read_bytes()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is missing"),
        ("{", "is damaged"),
        ('{"records": {"2.13": {"a": {"p": {"peak": 1}}}}, "allowances": {}}', "damaged.*weights"),
    ],
    ids=["missing", "no-json", "no-footprint"],
)
def test_a_file_that_cannot_be_read_says_so(tmp_path, text, says):
    """The message names the file and what to do."""
    path = tmp_path / "budgets.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GoldenError, match=f"budgets.json.*{says}"):
        Budgets.read(path)


def test_what_holds_what_it_should_has_no_divergence():
    """To the byte of the record, and at most what the reference holds."""
    assert exceeded(FOUND, FOUND, FOUND) is None
    assert exceeded(FOUND, None, replace(FOUND, peak=301)) is None


@pytest.mark.parametrize(
    ("budget", "ceiling", "probe", "ratio", "hint"),
    [
        ({"peak": 290, "blocks": {"a": 190, "b": 290}}, None, "a", 200 / 190, "10 bytes more"),
        ({"blocks": {"a": 200, "b": 290}}, None, "b", 300 / 290, "aten.mul in b.ff"),
        ({"peak": 310, "blocks": {"a": 200, "b": 310}}, None, "b", 300 / 310, "bytes less.*record"),
        ({"peak": 290}, None, "peak", 300 / 290, "10 bytes more"),
        (None, {"peak": 290, "blocks": {"a": 199, "b": 290}}, "b", 300 / 290, "diffusers holds"),
        (None, {"peak": 190, "blocks": {"a": 190, "b": 190}}, "a", 200 / 190, "never more than"),
        (None, {"peak": 290, "blocks": {}}, "b", 300 / 290, "diffusers holds 0.000 MiB and never"),
        ({"weights": FOUND.weights // 2}, None, "weights", 2, "parameters and buffers.*record"),
    ],
    ids=[
        *("first-block", "one-block", "less", "no-block"),
        *("above", "above-at-once", "blocks-unknown", "weights"),
    ],
)
def test_the_first_block_that_holds_too_much_is_named(budget, ceiling, probe, ratio, hint):
    """In execution order, with the operation at the peak; less than recorded is no pass either."""
    own, reference = (None if v is None else replace(FOUND, **v) for v in (budget, ceiling))
    found = exceeded(FOUND, own, reference)
    assert (found["probe"], found["kind"], found["limit"]) == (probe, "memory", 1.0)
    assert found["ratio"] == pytest.approx(ratio)
    assert re.search(hint, found["hint"])


class Fixed:
    """Predicts the same for everything."""

    def __init__(self, found):
        self.found = found
        self.port = type("Port", (), {"name": "p"})

    def predict(self, *_):
        """Return it."""
        return self.found


def test_recording_tells_what_changed():
    """From how many bytes to how many, at which operation; nothing where nothing did."""
    own, told = Budgets(), []
    assert record(own, Fixed(FOUND), [PAIR], told.append) == 1
    assert record(own, Fixed(FOUND), [PAIR], told.append) == 0
    wider = replace(FOUND, peak=600, at="aten._to_copy")
    assert record(own, Fixed(wider), [PAIR], told.append) == 1
    assert told[1] == f"p {KEY}: 300 -> 600 bytes, at aten._to_copy in b.ff (was aten.mul in b.ff)"


def test_every_configuration_has_a_name_of_its_own():
    """And is one of mode `memory`."""
    assert len({config_id(*pair) for pair in configurations()}) == len(configurations())
    assert {run.mode for _, run in configurations()} == {MEMORY}
    assert {case.id for case, _ in configurations()} == {case.id for case in memory_cases()}


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * 2**30), ("512 MiB", 2**29), ("1.5g", 3 * 2**29)]
)
def test_sizes_are_read(text, size):
    """With or without the unit's B, fractions too."""
    assert read_size(text, "--max") == size


@pytest.mark.parametrize("text", ["", "four", "4", "-1GiB", "4XB"])
def test_what_is_no_size_is_refused(text):
    """The option is named."""
    with pytest.raises(UsageError, match=r"--max .* is no size: write 8GiB"):
        read_size(text, "--max")


def lines():
    """Return sd1_impl's recorded lines."""
    own = budgets().records["2.13"]
    return [
        Line(case, run, own[key]["sd1_impl"], own[key].get("diffusers"))
        for case, run in configurations()
        if "sd1_impl" in own[key := config_id(case, run)]
    ]


def test_the_table_is_aligned_and_says_what_fits():
    """A row a configuration under one head."""
    text = table(lines(), 4 * 2**30)
    column = text[0].index("fits")
    assert {row[column : column + 4].strip() for row in text[1:]} == {"yes", "no"}
    assert len(text) == 1 + len(lines())


def test_a_card_draws_what_fits_it():
    """One network after another needs less than all of them loaded."""
    told = pictures(lines(), 2 * 2**30)
    assert [line.split(":")[0] for line in told] == [
        f"txt2img {side}x{side} in {dtype}"
        for side in (256, 512)
        for dtype in ("float32", "float16")
    ]
    assert "does not fit" in told[2]
    assert "fits, one network after another" in told[3]
    assert all("all networks loaded" in line for line in pictures(lines(), 2**40))
    assert mib(2**20) == "1.000 MiB"


def run(*words):
    """Run the command and return its exit code."""
    pytest.importorskip("torch")
    return cli.main(["budget", *words])


def test_the_command_prints_the_table_and_writes_it(tmp_path, capsys):
    """Exit 0 within budget; the file is a bench file of exact figures."""
    out = tmp_path / "budget.json"
    assert run("-k", "text_encoder/tiny", "--max", "1GiB", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "text_encoder/tiny/batch2" in printed
    assert "6 of 6 configurations fit in 1,024.000 MiB" in printed
    assert "6 of 6 configurations hold no more than they may" in printed
    rows = read(out).rows
    assert rows["text_encoder/tiny/batch2[float32-sdpa]"].unit == "bytes"


def test_nothing_that_fits_is_exit_1(capsys):
    """The answer is in the exit code too."""
    assert run("-k", "text_encoder/tiny", "--dtype", "float32", "--max", "1KiB") == 1
    assert "no" in capsys.readouterr().out


def test_measuring_counts_what_tensors_hold(capsys):
    """The column is the prediction's."""
    assert (
        run("-k", "text_encoder/tiny", "--dtype", "float32", "--backend", "sdpa", "--measure") == 0
    )
    *_, row, _ = capsys.readouterr().out.splitlines()
    cells = row.split()
    assert cells[4] == cells[7]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max", "big"], "--max 'big' is no size"),
        (["a", "b"], "budget takes one port"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--component", "nothing"], "unknown component 'nothing'"),
        (["exec:true"], "is no TorchPort"),
        (["--dtype", "bfloat16", "-k", "vae"], "no configuration is selected"),
        (["--device", "tpu"], "sd1_impl offers no device 'tpu' here"),
        (["record", "mine.py:port"], "only sd1_impl and diffusers are recorded, not mine.py:port"),
    ],
    ids=[
        *("size", "two-ports", "dtype", "component", "process", "nothing-left"),
        *("device", "foreign-record"),
    ],
)
def test_bad_usage_is_one_line(words, says, capsys):
    """Exit 2 and no traceback."""
    assert run(*words) == 2
    assert says in capsys.readouterr().err


PORT = """
from conformance.adapters.sd1_impl_networks import NETWORKS
from conformance.adapters.torch_module import TorchPort

build, call = NETWORKS["text_encoder"]

def look(module, tensors):
    outputs = call(module, tensors)
    float(outputs["pooler_output"].max())
    return outputs

def broken(module, tensors):
    raise ValueError("a bug")

def port(call=call):
    return TorchPort("small", "1", {"text_encoder": (build, call)})

def looking():
    return port(look)

def raising():
    return port(broken)
"""


@pytest.mark.parametrize(
    ("factory", "code", "says"),
    [
        ("port", 0, "6 of 6 configurations hold no more"),
        ("looking", 2, r"it looks at a value, as float\(x\).* \(.*mine\.py:9\)"),
        ("raising", 3, r"the port raised ValueError: a bug \(.*mine\.py:13\)"),
    ],
)
def test_a_port_of_ones_own(tmp_path, capsys, factory, code, says):
    """What it does not offer is left out; plain attention is the suite's; its errors are told."""
    (tmp_path / "mine.py").write_text(PORT)
    words = (f"{tmp_path / 'mine.py'}:{factory}", "--variant", "tiny")
    assert run(*words) == code
    printed = capsys.readouterr()
    assert re.search(says, printed.out + printed.err)


def test_budgets_are_strict_json():
    """No NaN, no number that is no integer."""
    found = json.loads(PATH.read_text("utf-8"), parse_constant=pytest.fail, parse_float=pytest.fail)
    assert set(found) == {"allowances", "records"}
