import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import tp2d_data

README = Path(__file__).parents[1] / "README.md"


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_import_and_checks_are_light():
    """The driver's checks must answer at once: no torch, transformers or datasets for local and built-in names."""
    heavy = "torch", "transformers", "datasets", "pyarrow", "huggingface_hub"
    code = f"""
import sys, tp2d_data
corpus = tp2d_data.Corpus(dataset_name="builtin:stdlib")
tp2d_data.DataSpec(corpora=(corpus,), packing=tp2d_data.Packing(seq_length=8)).check()
print([name for name in {heavy} if name in sys.modules])
"""
    assert run(code).stdout.strip() == "[]"


def test_stands_alone():
    """Nothing of ours, no Ray and no DeepSpeed, declared or imported."""
    declared = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    names = " ".join(re.split(r"[<>=~! ]", requirement)[0] for requirement in declared)
    assert names == "datasets filelock huggingface_hub jinja2 numpy pyarrow tokenizers torch transformers"
    code = """
import sys, pkgutil, importlib, tp2d_data
for module in pkgutil.walk_packages(tp2d_data.__path__, "tp2d_data."):
    importlib.import_module(module.name)
print(sorted({name.split(".")[0] for name in sys.modules} & {"ray", "deepspeed", "tp2d_mesh", "tp2d_train"}))
"""
    assert run(code).stdout.strip() == "[]"


def test_all_names_exist():
    assert all(hasattr(tp2d_data, name) for name in tp2d_data.__all__)
    kinds = [(not name.isupper(), name == name.lower(), name) for name in tp2d_data.__all__]
    assert kinds == sorted(set(kinds))  # constants, classes, functions


def test_readme_examples_run(builtin_cache):
    """Without any network: the hub is switched off."""
    first, own = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    for code, output in (first, "torch.Size([8, 256])"), (own, "squares 1000 documents,"):
        result = run(code, TP2D_CACHE=str(builtin_cache), HF_HUB_OFFLINE="1")
        assert result.returncode == 0, result.stderr
        assert output in result.stdout
