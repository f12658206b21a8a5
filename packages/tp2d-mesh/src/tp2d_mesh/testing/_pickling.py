"""How a function, its arguments and its result travel between the caller and the ranks of `run_on_mesh`."""

import contextlib
import importlib
import importlib.util
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor


class _Pickler(pickle.Pickler):
    """Pickles tensors by value as plain CPU tensors.

    multiprocessing's own way hands over shared memory, which is gone when the sender has exited.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, DTensor):
            raise TypeError("run_on_mesh cannot return a DTensor: return .full_tensor() or .to_local() of it.")
        if not isinstance(obj, torch.Tensor) or isinstance(obj, torch.nn.Parameter):
            return NotImplemented  # a Parameter's own way leads here again, with its data
        buffer = io.BytesIO()
        torch.save(obj.detach().cpu().clone(), buffer)  # cloned: a view would bring all of its storage
        return _tensor, (buffer.getvalue(),)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.load(io.BytesIO(data), weights_only=True)


def dumps(obj: Any) -> bytes:
    """Pickle `obj`; `pickle.loads` reads it in any process that can import what it names."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(obj)
    return buffer.getvalue()


def describe(function: Callable[..., Any]) -> tuple[str, str]:
    """The module name and file of a function that another process can find.

    Raises:
        ValueError: it is a lambda, is defined inside a function, or in no file.
    """
    function = getattr(function, "func", function)  # functools.partial
    name = getattr(function, "__qualname__", repr(function))
    module = sys.modules.get(getattr(function, "__module__", ""))
    file = getattr(module, "__file__", None)
    if module is None or file is None or "<" in name:
        raise ValueError(
            f"run_on_mesh cannot send {name} to other processes: define it at the top level of a file and give it what "
            "it needs as arguments."
        )
    return module.__name__ if module is not sys.modules["__main__"] else "__main__", file


@contextlib.contextmanager
def imported(name: str, file: str) -> Iterator[None]:
    """Within the block, `file` is imported as module `name`, so that what it defines pickles by name both ways.

    A test file is often not importable by the name that pytest gave it, or another file is. Then it is loaded by path,
    and forgotten at the end of the block: the next call finds its globals as new, and the other file under its name.
    """
    if name == "__main__" or _importable(name, file):  # multiprocessing has imported the caller's main file already
        yield
        return
    parents = [name[:end] for end, letter in enumerate(name) if letter == "."]
    before = {key: sys.modules.get(key) for key in (*parents, name)}
    try:
        for parent in parents:  # pickle looks for them too
            sys.modules.setdefault(parent, types.ModuleType(parent))
        _load(name, file)
        yield
    finally:
        for key, module in before.items():
            sys.modules.pop(key, None)
            if module is not None:
                sys.modules[key] = module


def _importable(name: str, file: str) -> bool:
    """Whether `name` imports from `file`; it is imported then."""
    try:
        return getattr(importlib.import_module(name), "__file__", None) == file
    except ModuleNotFoundError:  # raised again by `_load` if it is an import inside the file
        return False


def _load(name: str, file: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {name} from {file}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
