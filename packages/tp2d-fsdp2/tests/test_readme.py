"""The README's example trains, as the script of four ranks."""

import re
from pathlib import Path

from tp2d_mesh.testing import run_script

README = Path(__file__).parents[1] / "README.md"


def test_the_example_trains(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0])
    printed, *_ = run_script(script, dp=2, tp=2, timeout=200.0)
    losses = [float(x) for x in re.findall(r"^step \d loss ([\d.]+)", printed, re.MULTILINE)]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 1
