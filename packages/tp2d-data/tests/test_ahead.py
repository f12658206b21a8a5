import subprocess
import sys
import threading
import time

import pytest
from tp2d_data.ahead import Ahead


def double(number):
    time.sleep(0.002 * (number % 3))
    return 2 * number


@pytest.mark.parametrize(("workers", "depth"), [(0, 4), (1, 0), (1, 1), (3, 5), (4, 100)])
def test_results_come_in_order(workers, depth):
    assert list(Ahead(double, range(30), depth=depth, workers=workers)) == [(n, 2 * n) for n in range(30)]


def test_work_is_begun_before_it_is_asked_for_and_no_further_than_depth():
    begun = []
    results = Ahead(begun.append, range(100), depth=3, workers=1)
    next(results)
    time.sleep(0.2)
    assert begun == [0, 1, 2, 3]


def test_an_error_comes_where_its_result_is_due():
    def work(number):
        if number == 2:
            raise ValueError("bad document")
        return number

    results = Ahead(work, range(5), depth=4, workers=2)
    assert [next(results)[1] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="bad document"):
        next(results)
    assert list(results) == []


def test_leaving_early_leaves_no_thread():
    before = threading.active_count()
    results = Ahead(double, range(1000), depth=5, workers=3)
    next(results)
    results.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


SCRIPT = """
import sys
import torch
from tp2d_data import create_dataloader

class Model(torch.nn.Module):  # torch keeps it, and so this module's globals, to the very end
    pass

corpus, cache = sys.argv[1:]
given = {"seq_length": 4, "batch_size_per_gpu": 1, "dp_rank": 0, "dp_size": 1, "dataset_percentage": 100}
first = iter(create_dataloader("builtin:tiny", corpus, cache_dir=cache, **given))
second = iter(create_dataloader("builtin:tiny", corpus, cache_dir=cache, streaming=True, block_tokens=40, **given))
third = iter(create_dataloader("builtin:tiny", corpus, cache_dir=cache, **given))
next(first), next(second), next(third)
"""


def test_a_script_that_ends_in_the_middle_of_its_batches_is_silent(tmp_path, builtin_cache):
    """Iterators that live until the interpreter ends: no stack is printed, and no thread keeps the process alive."""
    (tmp_path / "corpus.txt").write_text("".join(f"w{i} <eos> w{i}\n" for i in range(200)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "corpus.txt"), str(builtin_cache)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
