"""The engine of sd1-conformance: judges any port of Stable Diffusion v1 in units of rounding noise.

Importing this package never imports torch; only `oracle`, `honest`, `record` and the adapters do,
and they are loaded when a command needs them.
"""

__version__ = "0.1.0"
