"""A child that is right, but for what its second argument says it does when asked for two samples.

Run by test_misbehaving.py: `python misbehaving_child.py ANSWERS FAULT`, where ANSWERS is an .npz of
right outputs by batch size. It serves with the real serve.py, below which each fault is put.
"""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("serve", ROOT / "conformance/adapters/serve.py")
serve = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(serve)

ANSWERS, FAULT = np.load(sys.argv[1]), sys.argv[2]
MESSAGES = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


class Port:
    """Offers the UNet, without probes."""

    def hello(self):
        """Offer one network."""
        if FAULT == "hello crashes":
            os.abort()
        offer = {"name": "child", "version": "1", "components": ["unet"]}
        offer["probes"] = FAULT == "unasked probe"
        if FAULT == "hello lies":
            offer["arithmetics"] = "float32"
        return {**offer, "replace": False}

    def load(self, *_):
        """Load nothing."""
        return self

    def run(self, inputs, *_):
        """Answer what is right, but for what is put in its place."""
        batch = len(inputs["sample"])
        answer = ANSWERS[str(batch)].astype(np.float32)
        faulty = batch == 2
        if faulty and FAULT == "wrong shape":
            answer = answer[:, :, 1:]
        if faulty and FAULT == "wrong dtype":
            answer = answer.astype(np.float64)
        if faulty and FAULT == "NaN":
            answer[0, 0, 0, 0] = np.nan
        if faulty and FAULT == "values in big-endian order":
            answer = answer.byteswap()
        if faulty and FAULT == "raises":
            raise ValueError("no such luck\nsecond line")
        if faulty and FAULT == "declines":
            raise type("UnsupportedError", (Exception,), {})("not today")
        if faulty and FAULT == "exits from Python":
            sys.exit(3)
        name = "image" if faulty and FAULT == "wrong name" else "sample"
        seen = {"conv_inn": answer} if faulty and FAULT == "unasked probe" else {}
        return {name: answer}, seen


def spoil_file(path):  # noqa: C901 - one fault a line
    """Damage the file of the outputs."""
    data = path.read_bytes()
    if FAULT == "file cut short":
        path.write_bytes(data[:-100])
    elif FAULT == "no safetensors":
        path.write_bytes(b"not safetensors at all, but long enough")
    elif FAULT == "header length in big-endian order":
        path.write_bytes(data[:8][::-1] + data[8:])
    elif FAULT == "header without end":
        path.write_bytes(struct.pack("<Q", 1 << 40) + data[8:])
    elif FAULT == "header is no object":
        path.write_bytes(struct.pack("<Q", 8) + b"[1,2,3] ")
    elif FAULT == "unknown dtype":
        path.write_bytes(data.replace(b'"F32"', b'"F33"'))
    elif FAULT == "file is missing":
        path.unlink()
    elif FAULT == "file is a link":
        other = path.with_name("other")
        path.rename(other)
        path.symlink_to(other)
    elif FAULT == "file is a pipe":
        path.unlink()
        os.mkfifo(path)
    elif FAULT == "removes its scratch folder":
        path.unlink()
        for left in path.parent.iterdir():
            left.unlink()
        path.parent.rmdir()


def spoil_reply(reply):
    """Change the reply."""
    ok = reply["ok"]
    if FAULT == "file outside":
        ok["outputs"] = "/etc/hostname"
    elif FAULT == "file above":
        ok["outputs"] = "../weights/diffusion_pytorch_model.safetensors"
    elif FAULT == "wrong id":
        reply["id"] += 1
    elif FAULT == "field missing":
        del ok["outputs"]
    elif FAULT == "field too many":
        reply["status"] = "fine"


def spoil_text(text):
    """Change what is printed, or do something else instead."""
    if FAULT == "debug print":
        return "step 1 done\n" + text
    if FAULT == "two replies":
        return text + text
    if FAULT == "no object":
        return "[1]\n"
    if FAULT == "no text":
        os.write(MESSAGES.fileno(), bytes(range(128, 256)) + b"\n")
        time.sleep(60)
    if FAULT == "half a line, then ends":
        MESSAGES.write(text[:9])
        MESSAGES.flush()
        os._exit(0)
    if FAULT == "half a line, then hangs":
        MESSAGES.write(text[:9])
        MESSAGES.flush()
        time.sleep(60)
    if FAULT == "endless line":
        while True:
            MESSAGES.write("x" * 65536)
    return text


def before():  # noqa: C901 - one fault a line
    """Do something instead of running."""
    if FAULT == "hangs":
        time.sleep(60)
    elif FAULT == "hangs, deaf to signals":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    elif FAULT == "crashes":
        os.abort()
    elif FAULT == "ends":
        sys.stderr.write("out of luck\n")
        os._exit(7)
    elif FAULT == "closes its output":
        os.close(MESSAGES.fileno())
        time.sleep(60)
    elif FAULT == "takes memory":
        kept = []
        while True:
            kept.append(np.ones(4 << 20))
            time.sleep(0.01)
    elif FAULT == "a grandchild holds its output, then ends":
        subprocess.Popen(["sleep", "60"], stdout=MESSAGES.fileno())
        os._exit(7)
    elif FAULT == "starts a process that stays":
        subprocess.Popen(["sleep", "60"], stdout=MESSAGES.fileno())
    elif FAULT == "floods standard error":
        for _ in range(1000):
            os.write(2, b"x" * 10000)
    elif FAULT == "prints from below Python":
        os.write(1, b"a print in C\n")


server = serve.Server(Port())
for line in sys.stdin:
    request = json.loads(line)
    run = request["op"] == "run"
    batches = (
        [
            entry[2][0]
            for entry in serve.open_tensors(request["inputs"]["tensors"]).values()
            if entry[2]
        ]
        if run
        else []
    )
    faulty = run and max(batches) == 2
    if faulty:
        before()
    reply, _ = serve.reply_to(server, line)
    if faulty and "ok" in reply:
        spoil_file(Path(reply["ok"]["outputs"]))
        spoil_reply(reply)
    out = json.dumps(reply) + "\n"
    MESSAGES.write(spoil_text(out) if faulty else out)
    MESSAGES.flush()
    if request["op"] == "bye":
        if FAULT == "stays after bye":
            time.sleep(60)
        break
