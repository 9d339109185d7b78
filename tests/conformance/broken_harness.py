"""A port whose harness is broken as its first argument says; its mathematics does not matter.

Run by test_smoke.py: `python broken_harness.py FAULT`. It serves with the real serve.py.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("serve", ROOT / "conformance/adapters/serve.py")
serve = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(serve)

FAULT = sys.argv[1]
MESSAGES = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

CHANGES = {
    "swaps bytes": lambda array: array.byteswap(),
    "writes columns first": lambda array: array.ravel(order="F").reshape(array.shape),
    "moves channels to the end": lambda a: np.moveaxis(a, 1, -1) if a.ndim > 3 else a,
    "makes scalars vectors": lambda array: array.reshape(array.shape or (1,)),
    "knows float32 alone": lambda a: a.astype(np.float32),
    "begins 4 bytes late": lambda a: np.roll(a.ravel(), 1).reshape(a.shape),
    "forgets to write": np.zeros_like,
}


class Echo:
    """Gives back what it got, changed."""

    def run(self, inputs, *_):
        """Return the inputs as outputs."""
        change = CHANGES.get(FAULT, lambda array: array)
        outputs = {name: change(array) for name, array in inputs.items()}
        if FAULT == "loses the last tensor" and len(outputs) > 1:
            outputs.popitem()
        if FAULT == "reuses a buffer of 64 MB" and outputs:
            outputs = {name: a.ravel()[: 16 << 20] for name, a in outputs.items()}
            outputs = {
                n: a if len(a) == 16 << 20 else a.reshape(inputs[n].shape)
                for n, a in outputs.items()
            }
        return outputs, {}


class Port:
    """Offers the text encoder, which gives zeros, or too little."""

    def hello(self):
        """Offer one network, without probes."""
        return {
            "name": "harness",
            "version": "1",
            "components": ["text_encoder"],
            "probes": False,
            "replace": False,
        }

    def load(self, component, variant, *_):
        """Keep the width."""
        if FAULT == "cannot load":
            raise KeyError("text_model.final_layer_norm.weight")
        self.width = variant.architecture(component)["hidden_size"]
        return self

    def run(self, inputs, *_):
        """Return zeros of the right shape."""
        batch = len(inputs["input_ids"])
        outputs = {"last_hidden_state": np.zeros((batch, 77, self.width), np.float32)}
        if FAULT != "forgets an output":
            outputs["pooler_output"] = np.zeros((batch, self.width), np.float32)
        return outputs, {}


serve.Echo = Echo
server = serve.Server(Port())
for line in sys.stdin:
    request = json.loads(line)
    if FAULT == "loads whatever it is asked for" and request["op"] == "load":
        request["component"] = "echo"
    reply, _ = serve.reply_to(server, json.dumps(request))
    if FAULT == "ends at an error" and "error" in reply:
        sys.exit(1)
    if FAULT == "does not know its errors" and "error" in reply:
        reply = {"id": reply["id"], "ok": {}}
    MESSAGES.write(json.dumps(reply) + "\n")
    MESSAGES.flush()
    if request["op"] == "bye":
        if FAULT == "fails at the end":
            sys.exit(1)
        break
