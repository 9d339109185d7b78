"""What `python -m sd1_impl` says, in one line, where torch is not installed."""

import sys
from importlib.util import find_spec

EXIT_USAGE = 2


def require_torch() -> None:
    """End the process, with what installs it, if it is that command's and torch is missing.

    Whoever imports the package is left with the error of the import.
    """
    missing = [name for name in ("torch", "regex") if find_spec(name) is None]
    if missing and sys.argv[:1] == ["-m"]:  # so Python calls itself until it has the command
        fix = "python -m pip install -c constraints/cpu.txt '.[torch]' in the clone"
        sys.stderr.write(f"sd1_impl needs {' and '.join(missing)}: {fix}\n")
        sys.exit(EXIT_USAGE)


require_torch()
