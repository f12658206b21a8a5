"""How a field of the configuration is declared, and how its value is checked and read from text.

A field is declared once, with its help, its default and its bounds. The command line, the YAML file, the rules of
resuming and the documentation read that declaration. Nothing here imports torch.
"""

import dataclasses
import json
import math
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin


def option(default: Any, text: str, *, fixed: bool = False, **rules: Any) -> Any:
    """Declares a field.

    `text` is the one-line help. `fixed` says that a run cannot be resumed with another value. `rules`: `choices`
    (names), `least`, `above`, `most` (numbers); `aliases` (other names on the command line), `needs` (an option and the
    value it must have where this one is given), `positional` (a word without an option's name). For the help: `starts`
    (the group that begins here), `common` (shown without `--help-all`).
    """
    return dataclasses.field(default=default, metadata={"help": text, "fixed": fixed, "default": default, **rules})


def derived(text: str, *, fixed: bool = False, **rules: Any) -> Any:
    """Declares a field that follows from others where it is None; it is an `int` once the configuration exists."""
    return option(None, text, fixed=fixed, derived=True, **rules)


def chosen(default: Any, text: str, *, builtin: Any, **rules: Any) -> Any:
    """Declares a fixed field whose default is `builtin` for a built-in model, and `default` for any other."""
    metadata = {"help": text, "fixed": True, "default": default, "builtin": builtin, "derived": True, **rules}
    return dataclasses.field(default=None, metadata=metadata)


def check_fields(value: Any) -> None:
    """Checks every field of a frozen dataclass of options and brings it into its type, for a `__post_init__`.

    Raises:
        ValueError: as `checked`.
    """
    for field in dataclasses.fields(value):
        object.__setattr__(value, field.name, checked(field, getattr(value, field.name)))


def allowed_types(field: dataclasses.Field) -> tuple[type, ...]:
    """The types a value of this field may have, e.g. `(int, NoneType)`; a derived field may be left None.

    A list of values, such as `tuple[str, ...]`, has the type `tuple`; see `item_type`. A `Literal` has the type `str`.
    """
    declared: Any = field.type
    parts = (declared,) if get_origin(declared) in (tuple, Literal) else get_args(declared) or (declared,)
    types = tuple(str if get_origin(part) is Literal else get_origin(part) or part for part in parts)
    return (*types, NoneType) if "derived" in field.metadata and NoneType not in types else types


def item_type(field: dataclasses.Field) -> type | None:
    """The type of the items of a field that holds a list of values, None for any other field."""
    declared: Any = field.type
    for part in (declared, *get_args(declared)):
        if get_origin(part) is tuple:
            return get_args(part)[0]
    return None


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """The names a field can have: those of its `Literal`, else those declared with it; empty where there are none."""
    return get_args(field.type) if get_origin(field.type) is Literal else field.metadata.get("choices", ())


def parse_value(field: dataclasses.Field, text: str) -> Any:
    """The value of a field from its text. `none` is None where the field may be; a list is written `a,b`.

    Raises:
        ValueError: the text is no value of the field's type.
    """
    types = allowed_types(field)
    if text.lower() == "none" and NoneType in types:
        return None
    if (kind := item_type(field)) is not None:
        return _parse_list(field, text, kind)
    kind = next(kind for kind in types if kind is not NoneType)
    try:
        if kind in (dict, bool):
            return json.loads(text.lower() if kind is bool else text)
        return kind(text)
    except ValueError:
        raise ValueError(f"{field.name} must be {_TYPE_NAMES[kind]}, not {text!r}") from None


def text_of(value: Any) -> str:
    """The text from which `parse_value` reads `value`."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict | bool) else "none" if value is None else str(value)


def checked(field: dataclasses.Field, value: Any) -> Any:
    """The value in its declared type, or `ValueError` with the field's name, the value and the bounds.

    Text for a field of another type is read as on the command line: a launcher may pass every setting as text.
    """
    types = allowed_types(field)
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and not value:
        raise ValueError(f"{field.name} is empty: leave it out or give a value")
    if isinstance(value, str) and str not in types:
        value = parse_value(field, value)
    if value is None and NoneType in types:
        return None
    value = _converted(field, value, types)
    _check_choice(field, value)
    _check_bounds(field, value)
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", dict: "a JSON object", str: "text"}


def _parse_list(field: dataclasses.Field, text: str, kind: type) -> tuple[Any, ...]:
    if kind is str and Path(text).expanduser().exists():
        return (text,)  # a comma in the path of one that exists separates nothing
    try:
        return tuple(kind(item.strip()) for item in text.split(","))
    except ValueError:
        raise ValueError(f"{field.name} must be numbers such as 0.7,0.3, not {text!r}") from None


def _converted(field: dataclasses.Field, value: Any, types: tuple[type, ...]) -> Any:
    kind = item_type(field)
    if kind is not None and isinstance(value, list | tuple):
        value = tuple(_of_type(field, item, (kind,)) for item in value)
        if not value:
            raise ValueError(f"{field.name} is empty: leave it out or give a value")
    return _of_type(field, value, types)


def _of_type(field: dataclasses.Field, value: Any, types: tuple[type, ...]) -> Any:
    if float in types and type(value) is int:
        value = float(value)
    if str in types and isinstance(value, Path):
        value = str(value)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join("none" if kind is NoneType else kind.__name__ for kind in types)
        raise ValueError(f"{field.name} must be {expected}, not {value!r}")
    return value


def _check_choice(field: dataclasses.Field, value: Any) -> None:
    choices = choices_of(field)
    if choices and value not in choices:
        raise ValueError(f"unknown {field.name} {value!r}: choose {', '.join(choices)}")


def _check_bounds(field: dataclasses.Field, value: Any) -> None:
    rules = {"at least": "least", "above": "above", "at most": "most"}
    bounds = {word: field.metadata[rule] for word, rule in rules.items() if rule in field.metadata}
    fits = {"at least": lambda b: value >= b, "above": lambda b: value > b, "at most": lambda b: value <= b}
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite or not all(fits[word](bound) for word, bound in bounds.items()):
        wanted = " and ".join(f"{word} {bound}" for word, bound in bounds.items()) or "finite"
        raise ValueError(f"{field.name} must be {wanted}, not {value}")
