"""Numbers in text are written in ASCII digits, in a file, an address, a flag or the environment.

Python's `int`, `float` and `Decimal` take the digits of every script, `str.isdigit` takes superscripts that they do
not, and ``\\d`` in a pattern is as wide: what looks like one label, one shard or one number to dlth would be another or
none to the next reader, and ``²`` a traceback. So text goes through here before it becomes a number.
"""


def is_digits(text: str) -> bool:
    """Whether the text is one or more of 0 to 9."""
    return text.isascii() and text.isdigit()


def ascii_only(text: str) -> str:
    """The text, for a number to be read from; ValueError where it has characters beyond ASCII."""
    if not text.isascii():
        raise ValueError(f"digits of another script: {text!a}")
    return text
