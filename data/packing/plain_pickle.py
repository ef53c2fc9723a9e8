"""Reads the texts, numbers and arrays that a pickle holds without unpickling it: what CIFAR's batches need.

A pickle is a program for a small stack machine, and who unpickles it runs it: it may import and call anything. Here
`pickletools`, which runs nothing, takes the program apart, and only the instructions that wrote CIFAR (Python 2 at
protocol 2, or Python 3 at the same) are carried out, on plain values. Of the names that a pickle may call four are
known; none is looked up, and what it would make is made here. Everything else is refused by name.

Byte strings stay texts of Latin-1, one character a byte, as the same batch has texts in one dialect and bytes in the
other. Rejected: the standard unpickler that finds these names alone, as numpy then reads shapes, types and objects as a
stranger wrote them.
"""

import math
import pickletools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import DamageError, LimitError, UnsafeError, shown

MAX_BYTES = 256 * 1024 * 1024
"""Of one pickle; CIFAR-100's training images have 155 MB."""
_MAX_STEPS = 1_000_000
"""Instructions of one pickle, as one byte may ask for a hundred; CIFAR-100's training images have 0.4 million."""
_MAX_AXES = 4


class _Name(NamedTuple):
    """A module and a name in it, which a pickle asks for."""

    text: str


_NDARRAY = _Name("numpy ndarray")
_EMPTY_ARRAY = (_NDARRAY, (0,), "b")
_ARRAY_MAKERS = (_Name("numpy.core.multiarray _reconstruct"), _Name("numpy._core.multiarray _reconstruct"))
_BYTE = (_Name("numpy dtype"), "u1")
_ENCODE = _Name("_codecs encode")
_KNOWN = {_NDARRAY, _BYTE[0], _ENCODE, *_ARRAY_MAKERS}


class _Array:
    """An array that is being made: numpy's version, shape, type, whether columns come first, and the bytes."""

    state: Any = None


def read_pickle(raw: bytes, where: str) -> dict[str, Any]:
    """The dict in a pickle: texts, whole numbers, lists, tuples and dicts of such, and arrays uint8 of any shape.

    Raises UnsafeError for instructions and names that no such dict needs, DamageError for what is cut short or makes
    no sense, LimitError for what is too large; each names `where`.
    """
    if len(raw) > MAX_BYTES:
        raise LimitError(f"{shown(where)}: {len(raw)} bytes; a pickle of at most {MAX_BYTES} is read")
    machine = _Machine()
    try:
        for number, (code, argument, position) in enumerate(pickletools.genops(raw), 1):
            if number > _MAX_STEPS:
                raise LimitError(f"{shown(where)} has more than {_MAX_STEPS} instructions: made to do harm")
            if not machine.step(code.name, argument):
                asked = f"{code.name} {shown(argument)}" if isinstance(argument, str) else code.name
                raise UnsafeError(
                    f"{shown(where)}: byte {position}: {asked}: images and labels need no such instruction. It was not"
                    " run; take the archive from its makers."
                )
        (result,) = machine.stack
        if not isinstance(result, dict):
            raise ValueError(f"it holds a {type(result).__name__}, not a dict")
        return _with_arrays(result, len(raw))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DamageError(f"{shown(where)} cannot be read: {shown(error)}. Fetch the archive again.") from error


class _Machine:
    """The pickle machine's stack, where its marks are on it, and its memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, instruction: str, argument: Any) -> bool:
        """Carry an instruction out; whether it is one of those that are known."""
        stack = self.stack
        match instruction:
            case "PROTO" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "SHORT_BINSTRING" | "BINSTRING" | "BINUNICODE":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWFALSE" | "NEWTRUE":
                stack.append(instruction == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(self._last(int(instruction[-1])))
            case "TUPLE":
                stack.append(self._since_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "APPEND" | "APPENDS":
                items = self._since_mark() if instruction == "APPENDS" else self._last(1)
                _only(list, stack[-1]).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._since_mark() if instruction == "SETITEMS" else self._last(2)
                keys = [_only(str, key) for key in items[::2]]
                _only(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_Name(argument))
                return stack[-1] in _KNOWN
            case "REDUCE":
                stack.append(_called(*self._last(2)))
            case "BUILD":
                (state,) = self._last(1)
                if isinstance(stack[-1], _Array):
                    stack[-1].state = state
                elif stack[-1] != _BYTE:  # a byte has no order, and of its type nothing else is to say
                    raise ValueError(f"a {type(stack[-1]).__name__} has no state")
            case _:
                return False
        return True

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise ValueError("an instruction has too few values")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def _since_mark(self) -> tuple[Any, ...]:
        mark = self.marks.pop()
        items = tuple(self.stack[mark:])
        del self.stack[mark:]
        return items


def _only(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} is expected, found a {type(value).__name__}")
    return value


def _called(name: Any, arguments: Any) -> Any:
    """What a call of a known name gives."""
    if name in _ARRAY_MAKERS and arguments == _EMPTY_ARRAY:
        return _Array()
    if name == _BYTE[0] and arguments[:1] == _BYTE[1:]:
        return _BYTE
    if name == _ENCODE and arguments[1:] == ("latin1",):
        return _only(str, arguments[0])
    # the arguments are not shown: a few bytes of a pickle may print as gigabytes
    called = name.text if isinstance(name, _Name) else type(name).__name__
    raise ValueError(f"it calls {called} with other arguments than an array of bytes needs")


def _with_arrays(result: dict[str, Any], size: int) -> dict[str, Any]:
    """The dict with its arrays made: each once, however many names it has, and no more bytes than the pickle's `size`,
    as many arrays may name the same bytes.
    """
    arrays = {id(value): value for value in result.values() if isinstance(value, _Array)}
    made: dict[int, NDArray[np.uint8]] = {}
    for number, array in arrays.items():
        made[number] = _made(array)
        size -= made[number].nbytes
        if size < 0:
            raise ValueError("its arrays have more bytes than it")
    return {name: made.get(id(value), value) for name, value in result.items()}


def _made(array: _Array) -> NDArray[np.uint8]:
    version, shape, kind, columns_first, content = _only(tuple, array.state)
    sizes = [_only(int, size) for size in _only(tuple, shape)[: _MAX_AXES + 1]]
    if version != 1 or kind != _BYTE or not 1 <= len(sizes) <= _MAX_AXES or min(sizes) < 0:
        raise ValueError("an array is none of bytes in rows")
    if math.prod(sizes) != len(_only(str, content)):
        raise ValueError(f"an array of shape {sizes} does not fit its {len(content)} bytes")
    values = np.frombuffer(content.encode("latin-1"), np.uint8)
    return values.reshape(sizes, order="F" if columns_first else "C")
