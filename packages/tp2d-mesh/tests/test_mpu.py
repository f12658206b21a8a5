import pytest
from tp2d_mesh import MPU, Layout
from tp2d_mesh.testing import run_on_mesh


def ask(mesh):
    mpu = MPU(mesh)
    same = [
        mpu.get_tensor_model_parallel_group() is mesh.tp_group,
        mpu.get_model_parallel_group() is mesh.tp_group,
        mpu.get_data_parallel_group() is mesh.dp_group,
    ]
    return same, {
        "tp": (mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()),
        "mp": (mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()),
        "dp": (mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()),
        "tp_src": mpu.get_tensor_model_parallel_src_rank(),
        "mp_src": mpu.get_model_parallel_src_rank(),
        "dp_src": mpu.get_data_parallel_src_rank(),
        "dp_ranks": mpu.get_data_parallel_group_ranks(),
    }


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (2, 2), (4, 1), (1, 4)])
def test_the_names_of_megatron_over_the_groups_of_the_mesh(dp, tp):
    layout = Layout(dp=dp, tp=tp)
    for rank, (same, answers) in enumerate(run_on_mesh(ask, dp=dp, tp=tp)):
        at = layout.coordinates(rank)
        assert same == [True] * 3
        assert answers == {
            "tp": (at.tp_rank, tp),
            "mp": (at.tp_rank, tp),
            "dp": (at.dp_rank, dp),
            "tp_src": layout.tp_groups()[at.dp_rank][0],
            "mp_src": layout.tp_groups()[at.dp_rank][0],
            "dp_src": layout.dp_groups()[at.tp_rank][0],
            "dp_ranks": list(layout.dp_groups()[at.tp_rank]),
        }
