"""A process that holds a network as a worker of a run does, and says what memory is its own."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from conformance.case import find_case
from conformance.port import resolve

_OWN = re.compile(r"^Anonymous:\s+(\d+) kB$", re.MULTILINE)
_SHARES = Path("/proc/self/smaps_rollup")


def own_bytes() -> int | None:
    """Return the bytes of memory that are of no file, so of this process alone; None but on Linux.

    Pages of a file that several processes map are there once, whatever their number.
    """
    found = _OWN.search(_SHARES.read_text("ascii")) if _SHARES.exists() else None
    return 1024 * int(found[1]) if found else None


def main(port_spec: str, case_id: str) -> None:
    """Load a case's network in float32, run it once, report, and hold it until standard input ends.

    Args:
        port_spec: The PORT argument.
        case_id: The case.
    """
    port, case = resolve(port_spec), find_case(case_id)
    inputs, before = case.inputs(), own_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    component = port.load(case.component, case.variant, case.weights(), "float32", "cpu")
    facts = {"seconds": time.perf_counter() - start, "cpu seconds": time.process_time() - cpu}
    component.run(inputs)
    after = own_bytes()
    own = None if before is None or after is None else max(0, after - before)
    sys.stdout.write(json.dumps(facts | {"own bytes": own}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
