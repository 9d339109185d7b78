"""The recipe in Python, without NumPy: prints the first values of a tensor.

python recipe.py NAME FAN_IN COUNT [dense]

FAN_IN is the product of all axes but the first; 0 for a norm's weight. It is not looked at for
biases, embeddings and inputs, whose names say what they are.
"""

import hashlib
import sys
from collections.abc import Iterator

MASK = 2**64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Return one block of Philox 4x64 with 10 rounds: four words."""
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            second >> 64 ^ counter[1] ^ key[0],
            second & MASK,
            first >> 64 ^ counter[3] ^ key[1],
            first & MASK,
        ]
        key = [key[0] + 0x9E3779B97F4A7C15 & MASK, key[1] + 0xBB67AE8584CAA73B & MASK]
    return counter


def integers(name: str, size: int) -> Iterator[int]:
    """Yield signed integers of 1 byte, or of 4 bytes without their lowest, for ever."""
    digest = hashlib.sha256(f"1:{name}".encode()).digest()
    key = [int.from_bytes(digest[i : i + 8], "little") for i in (0, 8)]
    block = 0
    while True:
        block += 1
        data = b"".join(word.to_bytes(8, "little") for word in philox([block, 0, 0, 0], key))
        for i in range(0, len(data), size):
            k = int.from_bytes(data[i : i + size], "little", signed=True)
            yield k if size == 1 else k >> 8


def value(k: int, name: str, fan_in: int, *, dense: bool) -> float:
    """Return the value that an integer stands for."""
    more = 16 * dense  # an int24 has 16 bits more
    if name.startswith("inputs/") or "_embedding." in name:
        return (2 * k + 1) * 2.0 ** -(7 + more)
    if name.endswith(".bias"):
        return (2 * k + 1) * 2.0 ** -(11 + more)
    if fan_in == 0:  # a norm's weight
        return 1 + (2 * (k >> 4) + 1) * 2.0**-23 if dense else 1 + (k >> 3) * 2.0**-7
    e = next(e for e in range(64) if 2 * 4**e >= 21845 * fan_in)
    return (2 * k + 1) * 2.0 ** -(e + more)


if __name__ == "__main__":
    tensor, inputs_of_one, count, *rest = sys.argv[1:]
    wide = rest == ["dense"]
    for _, k in zip(range(int(count)), integers(tensor, 4 if wide else 1), strict=False):
        print(repr(value(k, tensor, int(inputs_of_one), dense=wide)))
