"""Local processes that a user's own script starts."""

import subprocess
import sys
from pathlib import Path

from apps.train.tests.command_line import losses, write_text

SCRIPT = """
from tp2d_train import TrainConfig, train

print("the script begins")
result = train(TrainConfig(
    name="a", launcher="local", dataset_name="text.txt", holdout_percentage=0, seq_length=16, batch_size=2,
    log_interval=1, warmup_steps=0, packing="pad", dataset_percentage=100, tp_size=1, num_workers=1,
))
print("the script has", result.summary["step"], "steps")
"""


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    """The processes of its ranks do not run it again."""
    write_text(tmp_path, lines=8)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("the script begins") == 1 and "the script has 4 steps" in done.stdout
    assert "starting 1 local process on cpu (gloo)" in done.stdout
    assert [line["step"] for line in losses(tmp_path / "runs" / "a")] == [1, 2, 3, 4]
    assert not (tmp_path / "runs" / "a" / ".holder.json").exists()
