"""Bytes for eyes, in the form everybody knows. Pure."""

from __future__ import annotations

WIDTH = 16


def hexdump(content: bytes, most: int) -> str:
    """The first `most` bytes, sixteen a line: offset, bytes, and what is printable of them."""
    return "\n".join(_line(content[:most], at) for at in range(0, min(len(content), most), WIDTH))


def _line(content: bytes, at: int) -> str:
    part = content[at : at + WIDTH]
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
    return f"{at:06x}  {part.hex(' '):<{3 * WIDTH - 1}}  {text}"
