"""How sound files are made into damaged and hostile ones. All draws come from the generator that is given."""

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
NUMBERS = (
    b"0", b"-1", b"1", b"7", b"255", b"65536", b"2147483647", b"4294967296", b"1e30", b"1e-30", b"nan", b"inf", b"-0.0",
    b"99999999999999999999", b"9" * 5000,
)  # fmt: skip
LEAVES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3.5, 1e308, float("nan"), 10**12, 10**40, "", "x", "../../x", "a\0b", "\x1b[2J", "\ud83d",
    "1" * 5000, [], {}, [0], [[[]]], {"": 0}, ["a"] * 2000, {str(i): i for i in range(2000)},
)  # fmt: skip
DEPTH = 40
WORDS = (b"%s%n%n", b"../../../../etc/passwd", b"/dev/zero", b"LIST", b"\0", b"\xff\xfe", b"A" * 5000)


def mutated(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """Damage a file's content in one to four ways; `other` is a file of the same kind."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        content = draw.choice(BYTES)(content, other, draw) if content else other
    return content


def mutated_json(text: bytes, draw: random.Random) -> bytes:
    """JSON whose entries were exchanged, removed, repeated or nested; sometimes no JSON any more."""
    plain = json.loads(text)
    for _ in range(draw.choice((1, 1, 2, 4))):
        plain = _changed(plain, draw)
    written = json.dumps(plain).encode()
    if draw.random() < 0.05:  # deeper than Python itself can write
        written = written.replace(b'"x"', b"[" * 100_000, 1)
    return mutated(written, text, draw) if draw.random() < 0.1 else written


def _changed(plain: Any, draw: random.Random) -> Any:
    places = list(_places(plain))
    if not places:
        return copy.deepcopy(draw.choice(LEAVES))
    holder, key = draw.choice(places)
    action = draw.randrange(6)
    if action == 0 and isinstance(holder, dict):
        holder[draw.choice((" ", "version", "x" * 300, "\n", "__proto__"))] = holder.pop(key)
    elif action == 1:
        del holder[key]
    elif action == 2:
        for _ in range(draw.choice((1, 3, 100))):
            holder[key] = [holder[key]]
    else:
        holder[key] = copy.deepcopy(draw.choice(LEAVES))
    return plain


def _places(plain: Any, depth: int = 0) -> Any:
    """Every holder with a key of it; only the first few of long lists."""
    if not isinstance(plain, (dict, list)) or depth > DEPTH:
        return
    for key in list(plain)[:20] if isinstance(plain, dict) else range(min(len(plain), 20)):
        yield plain, key
        yield from _places(plain[key], depth + 1)


def _byte(content: bytes, other: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    value = draw.choice((content[place] ^ (1 << draw.randrange(8)), draw.choice(INTERESTING), draw.randrange(256)))
    return content[:place] + bytes([value]) + content[place + 1 :]


def _early_bytes(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """Headers come first."""
    head = min(len(content), 400)
    return mutated_part(content[:head], other, draw) + content[head:]


def mutated_part(part: bytes, other: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(1, 8)):
        part = _byte(part, other, draw)
    return part


def _cut(content: bytes, other: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _without(content: bytes, other: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.choice((1, 2, 4, 16, 200)) :]


def _repeated(content: bytes, other: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    part = content[start : start + draw.choice((1, 4, 16, 200))]
    return content[:start] + part * draw.choice((2, 3, 100)) + content[start:]


def _word(content: bytes, other: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + draw.choice(WORDS) + content[start + draw.choice((0, 4, 16)) :]


def _integer(content: bytes, other: bytes, draw: random.Random) -> bytes:
    size = draw.choice((2, 4, 8))
    value = draw.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 10**4, 0x01010101))
    start = draw.randrange(len(content))
    packed = (value % 2 ** (8 * size)).to_bytes(size, draw.choice(("little", "big")))
    return content[:start] + packed + content[start + size :]


def _number(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """One of the numbers that stand there as text."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", content[:5000]))
    if not found:
        return _integer(content, other, draw)
    chosen = draw.choice(found)
    return content[: chosen.start()] + draw.choice(NUMBERS) + content[chosen.end() :]


def _spliced(content: bytes, other: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]


BYTES: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    _byte, _byte, _early_bytes, _early_bytes, _cut, _without, _repeated, _word, _integer, _integer, _number,
    _number, _spliced,
)  # fmt: skip
