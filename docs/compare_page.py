"""Write the table in docs/compare.md, and docs/compare.png: a comparison that is killed once and called again.

    python docs/compare_page.py                      # about 3 minutes on two idle cores
    python docs/compare_page.py --storage FOLDER     # keeps its folders

Exits with 1 if the second call touched a run that had finished, or if losses are 1e-5 or more apart.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).parent
NAME = "meshes"
WORDS = (
    "--meshes 1x1,2x1,1x2,2x2 --engines fsdp2,autotp --launcher local --max-steps 20 --global-batch-size 8 "
    f"--warmup-steps 5 --name {NAME}"
)
DONE, STARTED, STEPS = ("fsdp2-1x1", "autotp-1x1"), "fsdp2-2x1", 5
BEGIN, END = "<!-- written by compare_page.py -->\n", "<!-- end -->\n"
BOUND = 1e-5


def main() -> int:
    """Compares, checks and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, help="where the comparison goes; default: a temporary folder")
    storage = parser.parse_args().storage
    with tempfile.TemporaryDirectory() as temporary:
        where = (storage or Path(temporary)).absolute()
        kill_in_the_middle(where)
        before = {name: stamps(where / NAME / name) for name in DONE}
        subprocess.run([*command(where), "--name", NAME], check=True)
        repeated = [name for name in DONE if stamps(where / NAME / name) != before[name]]
        write_page(where / NAME)
        rows = json.loads((where / NAME / "comparison.json").read_text())["rows"]
    apart = max(row["loss_difference"] for row in rows)
    print(f"finished before the kill: {', '.join(DONE)}; of these repeated: {', '.join(repeated) or 'none'}")
    print(f"largest difference of the losses to those of {rows[0]['name']}: {apart:.1e}")
    return 0 if not repeated and apart < BOUND else 1


def command(storage: Path) -> list[str]:
    """`tp2d compare` with its runs in `storage`."""
    return [sys.executable, "-m", "tp2d_train", "compare", "--storage-path", str(storage)]


def kill_in_the_middle(storage: Path) -> None:
    """Starts the comparison, and kills it when its third run has made some steps."""
    with subprocess.Popen([*command(storage), *WORDS.split()]) as process:
        metrics = storage / NAME / STARTED / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < STEPS:
            if process.poll() is not None:
                raise SystemExit(f"the comparison has ended before step {STEPS} of {STARTED}")
            time.sleep(0.02)
        process.kill()


def stamps(folder: Path) -> dict[str, int]:
    """When each file below `folder` was written."""
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def write_page(comparison: Path) -> None:
    """Puts table and picture into docs."""
    page = DOCS / "compare.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    table = (comparison / "comparison.md").read_text(encoding="utf-8")
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    shutil.copyfile(comparison / "compare.png", DOCS / "compare.png")


if __name__ == "__main__":
    sys.exit(main())
