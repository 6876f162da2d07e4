"""Text that is safe to print: what could break a line, or fool a terminal or its reader, is escaped."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with each character that `repr` would not print either written as its escape.

    That takes in line breaks, control characters, bidirectional overrides, invisible characters, and the lone
    surrogates of undecodable file names, which UTF-8 and most JSON encoders refuse.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
