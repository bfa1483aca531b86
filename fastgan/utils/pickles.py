"""Read the tensors in a Python pickle without executing anything that it says.

Unpickling calls whatever functions a file names. Here pickle's operations are parsed by the standard library's
`pickletools`, which runs none of them, and interpreted by this reader: of functions it knows those that put tensors
together, a class is a name beside what the file says of its object, and anything else ends the reading.
`torch.load(weights_only=True)` doesn't do: it refuses objects of other classes, and pickles that torch didn't write.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import first_line

LONGEST_SHAPE = 16  # dimensions of a tensor


class UnsafePickle(Exception):
    """A pickle that says more than tensors, numbers, texts, containers, and objects made of these."""


class Name(NamedTuple):
    """A class or a function, by name alone."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """An object of some class: what the file says of it, and none of its code."""

    def __init__(self, kind: Name) -> None:
        self.kind = kind
        self.state: Any = None


class _Bytes(NamedTuple):
    """Where in the file bytes lie: they are read when a tensor is made of them, so that memory holds them once."""

    offset: int
    length: int


def read_pickle(path: Path) -> Any:
    """Return what the pickle at `path` holds, objects as `Inert`. Raises UnsafePickle and OSError."""
    with path.open("rb") as file:
        try:
            return _Machine(file).run()
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, OverflowError) as error:
            raise UnsafePickle(f"it is damaged, or no pickle of tensors: {first_line(error)}") from None


class _Machine:
    """Pickle's machine: a stack, marks on it, and a memo."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._functions: dict[Name, Callable[..., Any]] = {
            Name("collections", "OrderedDict"): dict,
            Name("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
            Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
            Name("torch.storage", "_load_from_bytes"): self._storage,
        }

    def run(self) -> Any:
        """Return the object that is left at the end."""
        for operation, arg, _ in pickletools.genops(self._file):
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self._stack.append(arg)
            elif name in _BYTES:
                assert isinstance(arg, bytes)
                self._stack.append(_Bytes(self._file.tell() - len(arg), len(arg)))
            elif name not in ("PROTO", "FRAME"):
                step = _STEPS.get(name)
                if step is None:
                    raise UnsafePickle(f"it uses pickle's operation {name}, which no snapshot of tensors needs")
                step(self, arg)
        raise EOFError("it ends early")

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def short_tuple(self, length: int) -> None:
        items = self._stack[-length:]
        del self._stack[-length:]
        self._stack.append(tuple(items))

    def append(self, _: Any) -> None:
        item = self._stack.pop()
        self._container(list).append(item)

    def appends(self, _: Any) -> None:
        items = self._to_mark()
        self._container(list).extend(items)

    def add_items(self, _: Any) -> None:
        items = self._to_mark()
        self._container(set).update(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._container(dict)[key] = value

    def set_items(self, _: Any) -> None:
        items = self._to_mark()
        self._container(dict).update(zip(items[::2], items[1::2], strict=True))

    def _container(self, kind: type) -> Any:
        """Return what lies on top, a container of the kind."""
        if not isinstance(self._stack[-1], kind):
            raise TypeError(f"items are added to what is no {kind.__name__}")
        return self._stack[-1]

    def put(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def pop(self, _: Any) -> None:
        self._stack.pop()

    def name(self, text: str | None) -> None:
        if text is None:
            name, module = self._stack.pop(), self._stack.pop()
        else:
            module, name = text.split(" ", 1)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a class is named by what is no text")
        self._stack.append(Name(module, name))

    def new(self, _: Any) -> None:
        self._stack.pop()  # arguments of the class's, which has no code here
        kind = self._stack.pop()
        if not isinstance(kind, Name):
            raise TypeError("an object is of what is no class")
        self._stack.append(Inert(kind))

    def build(self, _: Any) -> None:
        state = self._stack.pop()
        top = self._stack[-1]
        if not isinstance(top, Inert):
            raise TypeError(f"a state is given to a {type(top).__name__}")
        top.state = state

    def call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function not in self._functions:
            raise UnsafePickle(f"it calls {function}, which makes no tensor")
        self._stack.append(self._functions[function](*arguments))

    def _storage(self, data: _Bytes) -> Tensor:
        """Return the numbers of a storage, as torch.save wrote it into the file."""
        at = self._file.tell()
        self._file.seek(data.offset)
        content = io.BytesIO(self._file.read(data.length))
        self._file.seek(at)
        try:
            storage = torch.load(content, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UnsafePickle("the bytes of a tensor hold something else") from None
        return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)  # `untyped()` warns of its class


def _tensor(numbers: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a view of a storage's numbers; torch raises RuntimeError for one that leaves them."""
    if not isinstance(numbers, Tensor) or len(size) > LONGEST_SHAPE:
        raise TypeError("a tensor is made of what is no storage")
    return numbers.as_strided(size, stride, offset)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "MEMOIZE": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "POP": _Machine.pop,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "REDUCE": _Machine.call,
}
