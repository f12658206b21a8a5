"""The README's example runs as it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_trains(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", str(script)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    losses = [float(x) for x in re.findall(r"^step \d loss ([\d.]+)", out, re.MULTILINE)]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 1
