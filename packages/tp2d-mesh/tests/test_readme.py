import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_prints_what_it_says(tmp_path):
    code, printed = re.findall(r"```(?:python)?\n(.*?)```", README.read_text(), re.DOTALL)[1:3]
    script = tmp_path / "example.py"
    script.write_text(code)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in run.stdout.splitlines() if not line.startswith("[Gloo]")] == printed.strip().splitlines()
