import threading
import time

import pytest
from tp2d_data.ahead import ahead


def double(number):
    time.sleep(0.002 * (number % 3))
    return 2 * number


@pytest.mark.parametrize(("workers", "depth"), [(0, 4), (1, 0), (1, 1), (3, 5), (4, 100)])
def test_results_come_in_order(workers, depth):
    assert list(ahead(double, range(30), depth=depth, workers=workers)) == [(n, 2 * n) for n in range(30)]


def test_work_is_begun_before_it_is_asked_for_and_no_further_than_depth():
    begun = []
    results = ahead(begun.append, range(100), depth=3, workers=1)
    next(results)
    time.sleep(0.2)
    assert begun == [0, 1, 2, 3]


def test_an_error_comes_where_its_result_is_due():
    def work(number):
        if number == 2:
            raise ValueError("bad document")
        return number

    results = ahead(work, range(5), depth=4, workers=2)
    assert [next(results)[1] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="bad document"):
        next(results)


def test_leaving_early_leaves_no_thread():
    before = threading.active_count()
    results = ahead(double, range(1000), depth=5, workers=3)
    next(results)
    results.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
