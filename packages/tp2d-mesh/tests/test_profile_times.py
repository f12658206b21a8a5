"""Where a step's time goes, on traces written by hand whose every microsecond is known."""

import random
from typing import Any

import pytest
from tp2d_mesh import Layout
from tp2d_mesh.profile import DATA, HOST, LOADER, PEERS, ROWS, STEP, WAIT, collectives, recorded_steps, transfer_times
from tp2d_mesh.profile import step_times as times_of
from tp2d_mesh.profile.spans import divided, length, overlap, union, without

MATRIX, ATTENTION, OTHER, OPTIMIZER, COPIES = ROWS[:5]


def event(name: str, cat: str, start: float, stop: float, *, tid: int = 1, **args: Any) -> dict[str, Any]:
    """One complete event of a trace, times in microseconds."""
    return {"ph": "X", "name": name, "cat": cat, "ts": start, "dur": stop - start, "pid": 0, "tid": tid, "args": args}


def microseconds(seconds: dict[str, float]) -> dict[str, float]:
    """The classes that took time."""
    return {name: round(value * 1e6, 3) for name, value in seconds.items() if value}


def test_an_instant_belongs_to_the_first_layer_that_covers_it() -> None:
    shares, left = divided([(0, 10), (20, 30)], [("a", [(5, 22), (8, 9)]), ("b", [(0, 40)]), ("a", [(0, 1)])])
    assert dict(shares) == {"a": [(5, 10), (20, 22)], "b": [(0, 5), (22, 30)]} and left == []
    assert divided([(0, 10)], [("a", [(-5, 2)])]) == ({"a": [(0, 2)]}, [(2, 10)])


def test_intervals_touch_overlap_and_are_empty() -> None:
    assert union([(3, 4), (0, 1), (1, 2), (5, 5)]) == [(0, 2), (3, 4)]
    assert overlap([(0, 4), (6, 8)], [(1, 2), (3, 7)]) == [(1, 2), (3, 4), (6, 7)]
    assert without([(0, 4), (6, 8)], [(1, 2), (3, 7)]) == [(0, 1), (2, 3), (7, 8)]
    assert without([(0, 4)], []) == [(0, 4)] and without([], [(0, 4)]) == []


def test_nothing_is_lost_or_counted_twice_whatever_overlaps() -> None:
    """Against a count of the single instants of a short time."""
    draw = random.Random(0)
    for _ in range(50):
        layers = [(name, [tuple(sorted(draw.sample(range(60), 2))) for _ in range(4)]) for name in "abc"]
        whole = union(tuple(sorted(draw.sample(range(60), 2))) for _ in range(3))
        shares, left = divided(whole, layers)
        assert sum(map(length, shares.values())) + length(left) == length(whole)
        for at in range(60):
            inside = any(start <= at < stop for start, stop in whole)
            first = next((name for name, spans in layers if any(start <= at < stop for start, stop in spans)), None)
            owner = [name for name, spans in shares.items() if any(start <= at < stop for start, stop in spans)]
            assert owner == ([first] if inside and first else [])


ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
GPU = {
    "distributedInfo": {
        "pg_config": [{"pg_name": "0", "pg_desc": "default_pg"}, {"pg_name": "3", "pg_desc": "mesh_dp"}],
    },
    "traceEvents": [
        event(DATA, "user_annotation", -90, -80),  # of an epoch that had no batch left
        event(DATA, "user_annotation", 0, 50),
        event(STEP, "user_annotation", 50, 1000),
        event(STEP, "gpu_user_annotation", 100, 650, tid=7),
        event("aten::mm", "cpu_op", 60, 90),  # it launches a kernel, which is what counts
        event("nvjet_tst", "kernel", -70, -60, tid=7),  # of the step before
        event("nvjet_tst", "kernel", 100, 300, tid=7),
        event(ALL_REDUCE, "kernel", 250, 400, tid=9, **{
            "Process Group Description": "mesh_tp", "In msg nelems": 100, "Out msg nelems": 100, "dtype": "BFloat16",
        }),
        event("Memcpy DtoD (Device -> Device)", "gpu_memcpy", 380, 420, tid=11),
        event("ncclDevKernel_AllGather_RING_LL(x)", "kernel", 500, 600, tid=13, **{
            "Process Group Name": "3", "In msg nelems": 8, "Out msg nelems": 16, "dtype": "Float",
        }),
        event("void pytorch_flash::flash_fwd_kernel<1>(P)", "kernel", 550, 650, tid=7),
        event("ncclDevKernel_AllReduce_Sum_f32(x)", "kernel", 1010, 1020, tid=9),  # after the step
    ],
}  # fmt: skip


def test_on_a_gpu_communication_counts_where_no_kernel_computes() -> None:
    (step,) = recorded_steps(GPU)
    times = times_of(step)
    assert microseconds(times.seconds) == {
        MATRIX: 200, ATTENTION: 100, COPIES: 40, LOADER: 50, HOST: 480,
        "communication, tp": 80, "communication, dp": 50,
    }  # fmt: skip
    assert times.step_seconds == pytest.approx(1e-3) == sum(times.seconds.values())
    assert times.exposed_seconds == pytest.approx(130e-6)
    tp, dp = times.exchanges
    assert (tp.axis, tp.kind, tp.calls, tp.size) == ("tp", "all_reduce", 1, 200)
    assert (tp.running_seconds, tp.exposed_seconds) == pytest.approx((150e-6, 80e-6))
    assert (dp.axis, dp.kind, dp.size) == ("dp", "all_gather", 64)


def test_time_before_the_last_rank_has_joined_is_waiting() -> None:
    """The peer's all-reduce took 60 us: it came 90 us later, in 50 of which this rank still computed."""
    (step,) = recorded_steps(GPU)
    times = times_of(step, transfers=[60, None])
    assert microseconds(times.seconds)["communication, tp"] == 40
    assert microseconds(times.seconds)[PEERS] == 40
    assert sum(times.seconds.values()) == pytest.approx(times.step_seconds)
    assert times.exposed_seconds == pytest.approx(130e-6)
    assert times.exchanges[0].waiting_seconds == pytest.approx(40e-6)


def test_data_that_a_gpu_computes_beside_cost_nothing() -> None:
    events = [
        event(DATA, "user_annotation", 0, 100),
        event(STEP, "user_annotation", 100, 200),
        event("nvjet_tst", "kernel", 20, 150, tid=7),
    ]
    (step,) = recorded_steps({"traceEvents": events})
    assert microseconds(times_of(step).seconds) == {MATRIX: 130, LOADER: 20, HOST: 50}


CPU = {
    "traceEvents": [
        event(DATA, "user_annotation", 0, 20),
        event("aten::cat", "cpu_op", 5, 10),  # the loader's
        event(STEP, "user_annotation", 20, 300),
        event("aten::linear", "cpu_op", 30, 80),
        event("aten::mm", "cpu_op", 40, 75),
        event("c10d::_allgather_base_", "cpu_op", 82, 85),  # ahead; waited for at the end
        event("c10d::allreduce_", "cpu_op", 90, 95),
        event(WAIT, "user_annotation", 97, 150),
        event("autograd::engine::evaluate_function: MmBackward0", "cpu_op", 160, 220),
        event("MmBackward0", "cpu_op", 165, 215),
        event("aten::mm", "cpu_op", 170, 200),
        event("_c10d_functional::all_reduce", "cpu_op", 225, 235),
        event("aten::clone", "cpu_op", 226, 227),
        event("c10d::allreduce_", "cpu_op", 228, 233),
        event("gloo:all_reduce", "user_annotation", 231, 259, tid=5),
        event("_c10d_functional::wait_tensor", "cpu_op", 236, 260),
        event("aten::_fused_adamw_", "cpu_op", 270, 290),
        event(WAIT, "user_annotation", 292, 298),
        event("aten::mm", "cpu_op", 100, 200, tid=2),  # another thread's: the step's own waits meanwhile
        event("aten::mm", "cpu_op", 310, 320),
    ]
}
NAMED = [("dp", "all_gather", 64), ("world", "all_reduce", 8), ("tp", "all_reduce", 400)]


def test_on_the_cpu_a_collective_counts_where_the_rank_is_blocked() -> None:
    (step,) = recorded_steps(CPU, named=NAMED)
    times = times_of(step)
    assert microseconds(times.seconds) == {
        MATRIX: 80, OPTIMIZER: 20, COPIES: 1, LOADER: 20, HOST: 79,
        "communication, tp": 33, "communication, dp": 9, "communication, world": 58,
    }  # fmt: skip
    assert sum(times.seconds.values()) == pytest.approx(times.step_seconds) == 300e-6
    assert [(one.axis, one.kind, one.size) for one in times.exchanges] == [
        ("tp", "all_reduce", 400),
        ("dp", "all_gather", 64),
        ("world", "all_reduce", 8),
    ]
    assert times.exchanges[1].running_seconds == pytest.approx((298 - 82) * 1e-6)


def test_collectives_that_are_not_those_expected_have_no_axis() -> None:
    (step,) = recorded_steps(CPU, named=NAMED[1:])
    assert [(call.axis, call.kind, call.size) for call in step.calls] == [
        ("other", "all_gather", None),
        ("other", "all_reduce", None),
        ("other", "all_reduce", None),
    ]
    assert microseconds(times_of(step).seconds)["communication, other"] == 100


def test_what_a_collective_takes_is_known_from_the_rank_that_joins_last() -> None:
    """On 2x2, tp groups are ranks 0, 1 and 2, 3; dp groups 0, 2 and 1, 3."""
    times = {0: (5.0, 50.0, 7.0), 1: (2.0, 30.0, 9.0), 2: (1.0, 20.0, 6.0), 3: (4.0, 60.0, 8.0)}
    everyone = [
        [
            ("tp", "all_reduce", tp),
            ("dp", "all_gather", dp),
            ("other", "all_reduce", 1.0),
            ("world", "all_reduce", all_),
        ]
        for tp, dp, all_ in times.values()
    ]
    layout = Layout(dp=2, tp=2)
    assert transfer_times(everyone, layout=layout, rank=0) == [2.0, 20.0, None, 6.0]
    assert transfer_times(everyone, layout=layout, rank=3) == [1.0, 30.0, None, 6.0]
    everyone[1] = everyone[1][1:]
    assert transfer_times(everyone, layout=layout, rank=0) == [None, 20.0, None, 6.0]


def test_a_rank_tells_the_others_how_long_its_collectives_were() -> None:
    (step,) = recorded_steps(CPU, named=NAMED)
    assert collectives(step) == [("dp", "all_gather", 216), ("world", "all_reduce", 60), ("tp", "all_reduce", 35)]
