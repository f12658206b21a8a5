"""GPUs or CPUs, and what the driver can know of it."""

import pytest
import torch
from tp2d_train.config import TrainConfig
from tp2d_train.setup.devices import check, choose_device, has_cluster


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [("auto", 4, "cuda"), ("auto", 5, "cuda"), ("auto", 3, "cpu"), ("cuda", 4, "cuda"), ("cpu", 4, "cpu")],
)
def test_workers_compute_on_gpus_where_all_of_them_can(asked: str, gpus: int, device: str) -> None:
    assert choose_device(TrainConfig(num_workers=4, device=asked), gpus=gpus) == torch.device(device)


def test_gpus_that_are_asked_for_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"a GPU for each of the 4 workers, there are 3"):
        choose_device(TrainConfig(device="cuda"), gpus=3)


def test_a_precision_that_the_cpu_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"precision='fp16' needs a GPU"):
        choose_device(TrainConfig(precision="fp16"), gpus=0)
    assert choose_device(TrainConfig(precision="fp16"), gpus=4) == torch.device("cuda")


def test_of_a_cluster_that_exists_only_its_own_ray_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's machine may have none of the GPUs; a local run is on this machine whatever RAY_ADDRESS says."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert has_cluster()
    assert check(TrainConfig(device="cuda", num_workers=999, dp_size=999, tp_size=1)) == torch.device("cuda")
    with pytest.raises(ValueError, match=r"a GPU for each of the 998 workers"):
        check(TrainConfig(device="cuda", num_workers=998, launcher="local"))
