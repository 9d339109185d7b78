"""Where a port raised, and what is kept of its traceback."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest

from conformance.at_work import at_work
from conformance.case import select_cases
from conformance.execution import Execution
from conformance.pytest_plugin import _conclude
from conformance.raised import MOST, last_lines, place_of, traceback_of, where_raised
from conformance.results import Results
from conformance.runner import Runner


def caught(function, *arguments: object) -> BaseException:
    """Return what a function raises."""
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - whatever it is
        function(*arguments)
    return raised.value


def deep(left: int) -> None:
    """Raise below so many calls."""
    if left:
        deep(left - 1)
    raise ValueError("line\n" * 50)


def twice() -> None:
    """Raise because of another."""
    try:
        json.loads("{")
    except ValueError as error:
        raise RuntimeError("no settings") from error


def test_own_frames_and_the_last_one() -> None:
    """Of a library the frame is shown that raised; the place is the port's own."""
    error = caught(json.loads, "{")
    own, code, last, *_, message = traceback_of(error).splitlines()[1:]
    assert own.startswith(f'  File "{__file__}", line ')
    assert code == "    function(*arguments)"
    assert last.endswith("in raw_decode")
    assert message.startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert where_raised(error).startswith(f"{__file__}:")


def test_what_it_was_raised_from_comes_first() -> None:
    """Two tracebacks, one after the other."""
    text = traceback_of(caught(twice))
    assert text.count("Traceback (most recent call last):") == 2
    assert text.index("JSONDecodeError: ") < text.index("RuntimeError: no settings")


def test_the_end_is_kept() -> None:
    """A long traceback loses its beginning, and a long message its end."""
    lines = traceback_of(caught(deep, 30)).splitlines()
    assert (len(lines), lines[0], lines[-6]) == (MOST, "  ...", "ValueError: line")
    assert last_lines(["  x = y", "      ~~^^^", "z"]) == "  x = y\nz"


def test_a_library_alone_has_no_traceback() -> None:
    """Where no frame is the port's there is nothing for its author to read."""
    error = caught(json.loads, "{")
    error.__traceback__ = error.__traceback__.tb_next.tb_next
    assert traceback_of(error) == ""


def test_the_place_does_not_depend_on_values() -> None:
    """Two errors of one place are the same one; those of no Python are told apart by their text."""
    first, second = (traceback_of(caught(partial(int, text))) for text in ("a", "b"))
    assert first != second
    assert place_of(first) == place_of(second)
    assert place_of("panicked: 1") != place_of("panicked: 2")


def test_kept_once(fake, tmp_path) -> None:
    """The first case of a place keeps the traceback, the others name that case."""

    def fails(inputs, *_):
        raise ValueError(inputs["sample"].sum())

    runner = Runner(fake(fails))
    cases = select_cases(["unet"], ["tiny"])[:3]
    own = [runner.run(case, Execution()).as_json() for case in cases]
    assert all(line["message"].startswith("the port raised ValueError: ") for line in own)
    items = {line["case"] for line in own}

    def results(lines: list, resume: object = None) -> list:
        kept = Results(tmp_path, runner.hello, "mine.py:make", "unet", resume=resume)
        return [kept.add(line) for line in lines]

    first, second, _ = results(own)
    assert first["traceback"].startswith("Traceback (most recent call last):\n")
    assert f'File "{__file__}"' in first["traceback"]
    assert "    raise ValueError(" in first["traceback"]
    assert first["detail"] == f"traceback: `traceback` of this case in {tmp_path}/results.jsonl"
    assert "traceback" not in second
    assert second["detail"] == f"traceback: that of {first['case']}"
    results(own[:1])
    (later,) = results(own[2:], items)
    assert later["detail"] == second["detail"], "a run that is resumed knows the first"


def test_a_skip_has_none(fake) -> None:
    """A port that declines has not failed."""

    class UnsupportedError(Exception):
        """One of the port's own."""

    def declines(*_):
        raise UnsupportedError("no")

    result = Runner(fake(declines)).run(select_cases(["unet"], ["tiny"])[0], Execution())
    assert (result.verdict, result.traceback) == ("skip", "")


def test_in_pytest(made_up) -> None:
    """An item that broke shows its traceback."""
    line = made_up.line("error", message="the port raised", traceback="File p.py, line 9")
    with pytest.raises(pytest.fail.Exception, match=r"port raised\nFile p\.py, line 9\n"):
        _conclude(line, "mine.py:make")


@pytest.mark.parametrize("status", [0, 7])
def test_a_port_that_would_end_the_run(fake, status: int) -> None:
    """It costs the case: the run goes on, and its exit code is not the port's."""
    leave = os._exit
    port = fake(lambda *_: os._exit(status))
    result = Runner(port).run(select_cases(["unet"], ["tiny"])[0], Execution())
    assert result.verdict == "error"
    told = f"the port raised SystemExit: os._exit({status}) would end the run: raise an exception"
    assert result.message.startswith(told)
    assert os._exit is leave


def test_a_forked_process_ends_as_it_wants() -> None:
    """Only the process in which the port is called is kept."""
    with at_work():
        child = os.fork()
        if not child:
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
