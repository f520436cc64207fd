"""Reads the pickles of torch.save and of CIFAR-10, and runs nothing: a small machine that knows their few instructions.

Python's own unpickler imports and calls what a file names; restricting what it may import still leaves it open to
instructions that take gigabytes. Here the standard library's disassembler (`pickletools.genops`, which carries nothing
out) gives the instructions, and this machine knows those that make numbers, strings, tuples, lists, dictionaries and
tensors. Any other instruction, and any name that is not in the table, ends the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any, BinaryIO, NamedTuple

from vgg_jax.weights.tensors import WeightsError, short

# What `torch.FloatStorage` and so on hold, as NumPy calls it.
STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
STORAGES |= {name.replace("torch.", "torch.cuda."): dtype for name, dtype in STORAGES.items()}


class Storage(NamedTuple):
    """A run of numbers that lies elsewhere in the file."""

    dtype: str
    key: str
    numel: int


class View(NamedTuple):
    """A tensor: part of a storage."""

    storage: Storage
    offset: int  # numbers, as are strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(NamedTuple):
    """A global named by the pickle; never resolved."""

    text: str


class Dialect(NamedTuple):
    """Names that pickles of one kind may hold, and the functions that stand in for them."""

    calls: Mapping[str, Callable[..., Any]]  # function of the arguments, by name
    others: Collection[str]  # names that are arguments
    build: Callable[[Any, Any], None]  # gives an object the state that its class would get; raises WeightsError
    remedy: str = ""  # the end of the sentence about a name that is in neither


class _Mark:
    pass


_MARK = _Mark()


def _ordered_dict(items: Any = ()) -> dict:
    # Python 3 makes it empty and sets its items afterwards; Python 2 gives a list of [key, value].
    pairs = isinstance(items, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in items)
    if not pairs or not all(isinstance(key, str) for key, _ in items):
        raise WeightsError("its pickle makes an OrderedDict of something else than pairs")
    entries = dict(items)
    if len(entries) < len(items):
        raise WeightsError("it has a name twice")
    return entries


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    sound = isinstance(storage, Storage) and isinstance(offset, int) and offset >= 0
    for numbers in (shape, strides):
        sound = sound and isinstance(numbers, tuple) and len(numbers) <= 8
        sound = sound and all(isinstance(n, int) and 0 <= n < 2**40 for n in numbers)
    if not sound or len(shape) != len(strides):
        raise WeightsError("a tensor whose storage, shape or strides are not such")
    return View(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> View:
    if not isinstance(data, View):
        raise WeightsError("a parameter that is not a tensor")
    return data


def _no_state(target: Any, _: Any) -> None:
    # A state dictionary's `_metadata`: versions of torch's own layers.
    if not isinstance(target, dict):
        raise WeightsError("its pickle is damaged (no dict where one should be)")


TORCH = Dialect(
    {
        "collections.OrderedDict": _ordered_dict,
        # Used before torch 0.4.
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
    },
    STORAGES,
    _no_state,
    "; of a whole module save the state dictionary: torch.save(module.state_dict(), FILE)",
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    # Python 2, which wrote old files, uses these.
    *("BINSTRING", "SHORT_BINSTRING"),
}
_EMPTY: dict[str, type] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(stream: BinaryIO, dialect: Dialect = TORCH) -> Any:
    """Reads the value of one pickle; the stream then stands behind it.

    Args:
      stream: whose `read` and `readline` cannot give more than the caller needs to hold in memory.
      dialect: of the file.

    Returns:
      None, bool, int, float, str, tuple, list, dict, what the dialect's calls return (`View`), or these within one
      another. Strings of Python 2 are str, a character for each byte.

    Raises:
      WeightsError: anything else in it, and what.
    """
    machine = _Machine(dialect)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST_INSTRUCTIONS:
                raise WeightsError("its pickle has far more instructions than such files need")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except WeightsError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        raise WeightsError(f"its pickle is damaged ({short(str(error))})") from error
    raise WeightsError("its pickle has no end")


# An instruction of one byte may make an object of a hundred. CIFAR-10's pickles have 50,000.
_MOST_INSTRUCTIONS = 2**20
# Items that all calls together may be given. A memoised list can be given again in three bytes; a VGG's calls take a
# thousand.
_MOST_ARGUMENTS = 2**20


class _Machine:
    """A pickle's stack and memo."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._arguments = 0

    def pop(self) -> Any:
        """Returns the last value, and takes it off the stack."""
        value = self._stack.pop()
        if value is _MARK:
            raise WeightsError("its pickle is damaged (a mark where a value should be)")
        return value

    def _pop_to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        # Raises IndexError below the bottom, once around.
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise WeightsError("its pickle is damaged (no mark)")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def step(self, name: str, argument: Any) -> None:
        """Carries out one instruction."""
        push = self._stack.append
        if name in ("PROTO", "FRAME"):
            return
        if name in _ARGUMENTS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name == "MARK":
            push(_MARK)
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name in _TUPLES:
            push(tuple([self.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self._memo[argument])
        elif name in ("APPEND", "APPENDS"):
            values = self._pop_to_mark() if name == "APPENDS" else [self.pop()]
            self._top(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._pop_to_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
            self._set_items(values)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            text = argument.replace(" ", ".") if name == "GLOBAL" else ".".join([self._word(), self._word()][::-1])
            push(_named(text, self._dialect))
        elif name == "REDUCE":
            arguments, called = self.pop(), self.pop()
            if (
                not isinstance(called, Name)
                or called.text not in self._dialect.calls
                or not isinstance(arguments, tuple)
            ):
                raise WeightsError("its pickle calls something that cannot be called")
            self._arguments += len(arguments) + sum(len(a) for a in arguments if isinstance(a, list | tuple))
            if self._arguments > _MOST_ARGUMENTS:
                raise WeightsError("its pickle makes far more than any model has")
            push(self._dialect.calls[called.text](*arguments))
        elif name == "BINPERSID":
            push(_storage(self.pop()))
        elif name == "BUILD":
            state = self.pop()
            self._dialect.build(self._stack[-1], state)
        else:
            raise WeightsError(f"its pickle has the instruction {name}, which no such file needs")

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise WeightsError(f"its pickle is damaged (no {kind.__name__} where one should be)")
        return self._stack[-1]

    def _word(self) -> str:
        word = self.pop()
        if not isinstance(word, str):
            raise WeightsError("its pickle is damaged (a name that is not a string)")
        return word

    def _set_items(self, values: list[Any]) -> None:
        target = self._top(dict)
        if len(values) % 2 or not all(isinstance(key, str | int) for key in values[::2]):
            raise WeightsError("its pickle is damaged (keys that are not strings)")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if key in target:
                raise WeightsError(f"it has {short(key)} twice")
            target[key] = value


def _named(text: str, dialect: Dialect) -> Name:
    if text not in dialect.calls and text not in dialect.others:
        raise WeightsError(
            f"it asks for {short(text)}, which is neither a tensor nor a dictionary, and no code of a file is ever run"
            f"{dialect.remedy}"
        )
    return Name(text)


def _storage(identity: Any) -> Storage:
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise WeightsError("its pickle refers to something that is not a storage")
    _, kind, key, _, numel = identity[:5]
    if not isinstance(kind, Name) or kind.text not in STORAGES or not isinstance(key, str):
        raise WeightsError("its pickle refers to a storage of an unknown kind")
    if not isinstance(numel, int) or isinstance(numel, bool) or not 0 <= numel < 2**40:
        raise WeightsError("its pickle refers to a storage of an impossible size")
    if len(identity) == 6 and identity[5] is not None:
        raise WeightsError(
            "its tensors share parts of storages, as torch wrote them before 0.4; save it again with torch"
        )
    return Storage(STORAGES[kind.text], key, numel)
