"""Engines by name."""

import subprocess
import sys

import pytest
from tp2d_train.engines import create_engine


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'megatron': choose fsdp2"):
        create_engine("megatron")


def test_engines_are_imported_when_they_are_created() -> None:
    """A run of one engine must not need, or wait for, the packages of the other."""
    code = (
        "import sys, tp2d_train.engines; print([name for name in ('tp2d_fsdp2', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
