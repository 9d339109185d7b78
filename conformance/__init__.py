"""The engine of sd1-conformance: judges any port of Stable Diffusion v1 in units of rounding noise.

Where to look: a case in `case`, its inputs in `scenarios/`; a golden in `golden`, how it is made
from `oracle`, with its noise, in `recording/`; the limit in `tolerance`; how a port is asked and
judged in `runner`, `judge` and `compare`; the port contract in `port`, ways to fulfil it in
`adapters/`; a mutant in `mutants/`, a budget in `memory/`; what a run leaves in `results`, a
section of its page in `report/`; a command in `cli_*`.

Importing this package never imports torch; only `oracle`, `recording/`, the adapters and the
mutants do, and they are loaded when a command needs them.
"""

__version__ = "0.1.0"
