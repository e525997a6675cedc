"""Ways to spoil a file, as hypothesis strategies: bytes, words of a text, entries of a safetensors header."""

import json
import re
import struct
from copy import deepcopy

from hypothesis import strategies as st

HOSTILE_WORDS = (
    b"", b"0", b"-1", b"1", b"255", b"65535", b"65536", b"4294967296", b"9223372036854775808", b"-9223372036854775809",
    b"1e309", b"-1e309", b"1e-400", b"nan", b".nan", b"NaN", b".inf", b"Infinity", b"null", b"~", b"true", b"0x10",
    b"1_000", b"12:30:45", b"2020-01-01", b'"', b"'", b"[]", b"{}", b"[[1]]", b'{"a": 1}', b"[" * 3000, b"{a: " * 300,
    b"9" * 5000, b"x" * 5000, b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", "\u2028".encode(), "é".encode(), b"\\ud800",
    b"!!python/object/apply:os.system [echo]", b"!!binary aGk=", b"!!set {a}", b"&a [*a]", b"*missing", b"<<: 1",
    b"? [1]", b"%TAG ! x", b"---\n", b"../../../etc/passwd", b"<script>alert(1)</script>", b"\x1b[31m", b"\r", b"\n",
    b"1_", b"1.", b"+.5", b"lru[", b"[]]", b"lru[evict=lru[evict=lru]]", b"100%", b"1e3%", b"-5%", b"0b11", b"0o7",
)
_WORD = re.compile(rb"[A-Za-z0-9_.+\-]+")
SIZES = (0, 1, -1, 7, 8, 2**16, 2**31, 2**32, 2**40, 2**50, 2**53 + 1, 2**62, 2**63, 2**64, 10**30)
HEADER_VALUES = (*SIZES, 1.5, None, True, "x", [], [0], [2**50], [0, 2**50], {}, "U8", "F64", "BF16", [-1, 3])

places = st.integers(0, 2**31)


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, int, int, object]:
    """One way to spoil bytes: a name, a place, an amount and something to put there."""
    return (
        draw(st.sampled_from(("bit", "byte", "cut", "repeat", "end", "word", "word", "word", "insert", "swap"))),
        draw(places), draw(st.integers(0, 255)), draw(st.sampled_from(HOSTILE_WORDS)),
    )


def edited(data: bytes, edit: tuple[str, int, int, object]) -> bytes:
    """The bytes after one edit."""
    kind, place, amount, word = edit
    assert isinstance(word, bytes)
    if not data:
        return word
    at = place % len(data)
    match kind:
        case "bit":
            return data[:at] + bytes([data[at] ^ 1 << amount % 8]) + data[at + 1 :]
        case "byte":
            return data[:at] + bytes([amount]) + data[at + 1 :]
        case "cut":
            return data[:at] + data[at + amount :]
        case "repeat":
            return data[:at] + data[at : at + amount] * 3 + data[at + amount :]
        case "end":
            return data[:at]
        case "insert":
            return data[:at] + word + data[at:]
        case "swap":
            lines = data.split(b"\n")
            one, two = at % len(lines), amount % len(lines)
            lines[one], lines[two] = lines[two], lines[one]
            return b"\n".join(lines)
    words = list(_WORD.finditer(data))
    if not words:
        return word
    found = words[place % len(words)]
    return data[: found.start()] + word + data[found.end() :]


@st.composite
def spoiled(draw: st.DrawFn, bases: tuple[bytes, ...]) -> bytes:
    """One of the files after one to four edits."""
    data = draw(st.sampled_from(bases))
    for edit in draw(st.lists(edits(), min_size=1, max_size=4)):
        data = edited(data, edit)
    return data


@st.composite
def spoiled_headers(draw: st.DrawFn, bases: tuple[bytes, ...]) -> bytes:
    """A safetensors file whose header, or whose moesim metadata, says something else; its length fits again."""
    data = draw(st.sampled_from(bases))
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for _ in range(draw(st.integers(1, 3))):
        value = deepcopy(draw(st.sampled_from(HEADER_VALUES)))
        names = [name for name in header if name != "__metadata__"]
        match draw(st.sampled_from(("field", "shape", "grow", "rename", "drop", "metadata", "metadata"))):
            case "field":
                header[draw(st.sampled_from(names))][draw(st.sampled_from(("dtype", "shape", "data_offsets")))] = value
            case "shape":
                entry = header[draw(st.sampled_from(names))]
                if isinstance(entry.get("shape"), list) and entry["shape"]:
                    entry["shape"][draw(places) % len(entry["shape"])] = value
            case "grow":
                entry = header[draw(st.sampled_from(names))]
                size = draw(st.sampled_from(SIZES))
                entry["shape"], entry["data_offsets"] = [size], [0, size]
            case "rename":
                header[draw(st.sampled_from((*names, "x", "predicted.", "predicted.x.scores", "")))] = header.pop(
                    draw(st.sampled_from(names))
                )
            case "drop":
                if len(names) > 1:
                    del header[draw(st.sampled_from(names))]
            case "metadata":
                header["__metadata__"]["moesim"] = _spoiled_metadata(draw, header["__metadata__"]["moesim"], value)
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + data[8 + length :]
    return edited(data, draw(edits())) if draw(st.integers(0, 9)) == 0 else data


def _spoiled_metadata(draw: st.DrawFn, text: str, value: object) -> str:
    try:
        metadata = json.loads(text)
        metadata[draw(st.sampled_from(sorted(metadata)))] = draw(
            st.one_of(st.just(value), st.sampled_from(HOSTILE_WORDS).map(lambda word: word.decode("latin-1")))
        )
        return json.dumps(metadata)
    except (ValueError, TypeError, AttributeError, IndexError):
        return edited(text.encode(), draw(edits())).decode("latin-1")
