"""A child process that answers one line with one line, and is not trusted to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from conformance.command_files import absent
from conformance.errors import PortError, UsageError
from conformance.raised import last_lines
from conformance.report.text import one_line

LONGEST_LINE = 1 << 20
"""Bytes of a reply: tensors travel as files."""

_CHUNK = 1 << 16
_TICK = 0.1
"""Seconds between two looks at whether the child lives and what memory it holds."""

_TAIL = 4096
_SHOWN = 160
_GOODBYE = 5.0


class HungError(PortError):
    """A child did not reply in time."""


class Child:
    """A process group that speaks JSON lines on its standard streams.

    Nothing that it does takes longer than the time it is given, or more memory than it may have.
    After an error it is dead, and its whole group with it.
    """

    def __init__(self, command: list[str], memory: int | None = None) -> None:
        """Start the process.

        Args:
            command: Program and arguments.
            memory: Bytes that the process and those that it started may hold; None for no limit.

        Raises:
            UsageError: There is no such program.
        """
        self.memory = memory
        self._absent = absent(command)
        self._is_served = any(Path(word).name == "serve.py" for word in command)
        program = shutil.which(command[0])
        if program is None:
            message = f"exec: {command[0]!r} is no program that can be run, here or on the PATH"
            raise UsageError(message)
        try:
            self._process = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            message = f"exec: {command[0]!r} cannot be started: {error.strerror or error}"
            raise UsageError(message) from error
        self._stdin, self._stdout, self._stderr = (
            _nonblocking(self._process.stdin),
            _nonblocking(self._process.stdout),
            _nonblocking(self._process.stderr),
        )
        self._reply = b""
        self._log = b""
        self.said = ""  # on standard error, during the last request
        self._closed = False
        self._looked = 0.0
        _first_to_go(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return not self._closed and self._process.poll() is None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one message and wait for one line.

        Args:
            message: What to send; `op` says in errors what it was.
            seconds: How long it may take.

        Returns:
            The reply, a JSON object.

        Raises:
            PortError: There is none: the process ended, held too much memory, or printed something
                else. It has been killed.
            HungError: It took too long. It has been killed.
        """
        op = str(message.get("op"))
        try:
            line = self._exchange(json.dumps(message).encode() + b"\n", op, seconds)
            reply = _parsed(line, op)
        except BaseException as error:
            self.kill()
            if isinstance(error, PortError) and self._log.strip():
                text = f"{error}; last on its standard error: {_last_words(self._log)}"
                told = type(error)(text)
                told.add_note(self._last_lines())
                raise told from None
            raise
        self._read_log(most=LONGEST_LINE)
        self.said = self._last_lines()
        self._log = b""  # what is told of it later came after this reply
        return reply

    def _last_lines(self) -> str:
        return last_lines(self._log.decode(errors="replace").strip().splitlines())

    def _exchange(self, line: bytes, op: str, seconds: float) -> bytes:
        """Send a line and return the one that comes back."""
        deadline = time.monotonic() + seconds
        if self._read_reply() and self._reply:
            message = f"the port printed {_quoted(self._reply)} before it was asked for {op}"
            raise PortError(message)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            selector.register(self._stderr, selectors.EVENT_READ)
            selector.register(self._stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._reply:
                ready = {key.fileobj for key, _ in selector.select(_TICK)}
                if self._stdin in ready:
                    line = self._send(line)
                    if not line:
                        selector.unregister(self._stdin)
                if self._stderr in ready and not self._read_log():
                    selector.unregister(self._stderr)
                dead = not self.alive  # before reading: what it said last is there by then
                open_ended = self._read_reply()
                if (dead or not open_ended) and b"\n" not in self._reply:
                    raise PortError(self._ending(op))
                if len(self._reply) > LONGEST_LINE:
                    message = (
                        f"the port printed over {LONGEST_LINE} bytes in reply to {op}, and no line "
                        f"end: {_quoted(self._reply)}"
                    )
                    raise PortError(message)
                self._check_memory(op)
                if time.monotonic() > deadline and b"\n" not in self._reply:
                    half = f"; of a line came {_quoted(self._reply)}" if self._reply else ""
                    message = f"the port did not reply to {op} within {seconds:g} s{half}"
                    raise HungError(message)
        reply, _, rest = self._reply.partition(b"\n")
        if rest:
            message = f"the port printed more than one line in reply to {op}: {_quoted(rest)}"
            raise PortError(message)
        self._reply = b""
        return reply

    def _send(self, line: bytes) -> bytes:
        """Write what the pipe takes and return the rest; nothing is left of a broken pipe."""
        try:
            return line[os.write(self._stdin.fileno(), line) :]
        except BlockingIOError:
            return line
        except BrokenPipeError:
            return b""

    def _read_reply(self) -> bool:
        """Take what the child printed; False at the end of its output."""
        while len(self._reply) <= LONGEST_LINE:
            chunk = _read(self._stdout)
            if chunk is None:
                return True
            self._reply += chunk
            if not chunk:
                return False
        return True

    def _read_log(self, most: int = _CHUNK) -> bool:
        """Keep the end of the child's standard error; False where it was closed."""
        while most > 0:
            chunk = _read(self._stderr)
            if not chunk:
                return chunk is None
            self._log = (self._log + chunk)[-_TAIL:]
            most -= len(chunk)
        return True

    def _ending(self, op: str) -> str:
        """Say how the process ended, or that it closed its output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._read_log(most=LONGEST_LINE)
        code = self._process.returncode
        half = f"; of a line came {_quoted(self._reply)}" if self._reply else ""
        if code is None:
            return f"the port closed its standard output while it was asked for {op}{half}"
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        if code > 0 and op == "hello" and self._absent:
            how += f"; no such file: {', '.join(self._absent)}"
        if code == 0 and not half and not self._is_served:
            how += "; does it read requests from its standard input? A Python port is served: "
            how += "exec:python serve.py my_port.py:factory"
        return f"the port ended while it was asked for {op} ({how}){half}"

    def _check_memory(self, op: str) -> None:
        now = time.monotonic()
        if self.memory is None or now - self._looked < _TICK:
            return
        self._looked = now
        held = resident_bytes(self._process.pid)
        if held > self.memory:
            message = (
                f"the port held {_size(held)} while it was asked for {op}: --memory allows "
                f"{_size(self.memory)}"
            )
            raise PortError(message)

    def close(self, message: dict[str, Any]) -> int | None:
        """Say goodbye and give the process a moment to end by itself; then end it.

        Args:
            message: The `bye`.

        Returns:
            The exit code if it ended by itself, None if it had to be killed.
        """
        code = None
        if self.alive:
            with contextlib.suppress(PortError):
                self.ask(message, _GOODBYE)
            if not self._closed:
                self._stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_GOODBYE)
        self.kill()
        return code

    def kill(self) -> None:
        """End the process and all of its group, at once."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GOODBYE)
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()


def _nonblocking(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - all three are pipes
    os.set_blocking(stream.fileno(), False)
    return stream


def _read(stream: IO[bytes]) -> bytes | None:
    """Read what is there: None where nothing is yet, no byte at the end."""
    try:
        return os.read(stream.fileno(), _CHUNK)
    except BlockingIOError:
        return None


def _parsed(line: bytes, op: str) -> dict[str, Any]:
    """Read a reply."""
    try:
        reply = json.loads(line)
    except ValueError:
        reply = None
    if isinstance(reply, dict):
        return reply
    message = (
        f"the port replied to {op} with {_quoted(line)}, which is no JSON object: its standard "
        "output carries messages only, everything else belongs on standard error"
    )
    raise PortError(message)


def _quoted(text: bytes) -> str:
    return repr(one_line(text[: 4 * _SHOWN].decode(errors="replace"), _SHOWN))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _size(count: int) -> str:
    mib = count / (1 << 20)
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"  # noqa: PLR2004 - MiB a GiB


_ERROR = re.compile(r"\w*(Error|Exception|panicked)\b.*\S", re.IGNORECASE)


def _last_words(log: bytes) -> str:
    """Return what a log ends with: the last line that names an error, or else the last one.

    With it come the file and line of a Python traceback above it.
    """
    lines = log.decode(errors="replace").strip().split("\n")
    errors = [i for i, line in enumerate(lines) if _ERROR.search(line)]
    lines = lines[: errors[-1] + 1] if errors else lines
    places = [line.strip() for line in lines[:-1] if line.strip().startswith('File "')]
    where = f" ({one_line(places[-1].partition(', in ')[0], _SHOWN)})" if places else ""
    return one_line(lines[-1], _SHOWN) + where


def _first_to_go(pid: int) -> None:
    """Where memory runs out before a limit is noticed, the system ends the child, not the suite."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000", encoding="ascii")


def resident_bytes(session: int) -> int:
    """Return the memory that all processes of a session hold, in bytes; 0 where nobody knows."""
    if sys.platform != "linux":
        return 0
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(after_name[_SESSION]) == session:
                total += int(after_name[_RSS]) * page
    return total


_SESSION, _RSS = 3, 21
"""Fields of /proc/PID/stat after the name: session, resident pages."""


def machine_memory() -> int:
    """Return the memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
