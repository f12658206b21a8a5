"""Whether the installed packages are those that tp2d was tested with, or at least those it asks for."""

import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from tp2d_train.doctor.finding import Finding, Level

TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "datasets": "5.2.0",
    "huggingface_hub": "2.4.0",
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
    "numpy": "2.4.6",
    "pyarrow": "26.0.1",
}
"""The versions that every test of this release ran with; a wheel does not carry the repository's constraints.txt."""

TESTED_PYTHON = ("3.11",)
APP, OURS = "tp2d-train", "tp2d-"


def check_versions(tested: Mapping[str, str] = TESTED) -> Iterator[Finding]:
    """Python, every package of `tested`, and our own.

    Args:
        tested: package -> the version that was tested.
    """
    yield _python()
    bounds = dict(_bounds(APP))
    for name, wanted in tested.items():
        yield _package(name, wanted, bounds)
    yield from _own(bounds)


def _python() -> Finding:
    found, tested = platform.python_version(), " or ".join(TESTED_PYTHON)
    if found.rpartition(".")[0] in TESTED_PYTHON:
        return Finding(check="python", text=found)
    return Finding(
        level=Level.WARNING,
        check="python",
        text=f"{found}, tested with {tested}",
        mend="if something fails, try that one",
    )


def _bounds(package: str) -> Iterator[tuple[str, Requirement]]:
    """Every requirement of a package and of ours below it, by the canonical name, extras left out."""
    for text in requires(package) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _canonical(requirement.name), requirement
            if requirement.name.startswith(OURS) and _installed(requirement.name):
                yield from _bounds(requirement.name)


def _package(name: str, wanted: str, bounds: Mapping[str, Requirement]) -> Finding:
    found, bound = _installed(name), bounds.get(_canonical(name))
    pin = f"pip install '{name}=={wanted}'"
    if found is None:
        return Finding(level=Level.PROBLEM, check=name, text="not installed", mend=pin)
    if bound is not None and not bound.specifier.contains(found, prereleases=True):
        text = f"{found}, and tp2d needs {bound.specifier}"
        return Finding(level=Level.PROBLEM, check=name, text=text, mend=pin)
    if Version(found).release[:2] != Version(wanted).release[:2]:
        text = f"{found}, tested with {wanted}"
        return Finding(level=Level.WARNING, check=name, text=text, mend=f"if something fails: {pin}")
    return Finding(check=name, text=found if Version(found).public == wanted else f"{found} (tested with {wanted})")


def _own(bounds: Mapping[str, Requirement]) -> Iterator[Finding]:
    """Our packages: each there, and each one that the others can work with."""
    found = {name: _installed(name) for name in (APP, *(name for name in bounds if name.startswith(OURS)))}
    wrong = [
        f"{name} {number or 'not installed'}, needed {bounds[name].specifier}"
        for name, number in found.items()
        if name in bounds and (number is None or not bounds[name].specifier.contains(number, prereleases=True))
    ]
    if wrong:
        mend = "install all of them from one release"
        yield Finding(level=Level.PROBLEM, check="tp2d", text=", ".join(wrong), mend=mend)
    else:
        yield Finding(check="tp2d", text=", ".join(f"{name.removeprefix(OURS)} {v}" for name, v in found.items()))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
