import pytest
from tp2d_data.sampling.sharding import Sharding


def test_ranks_share_a_global_batch_in_their_order():
    ranks = [Sharding(batch_size_per_gpu=2, dp_rank=rank, dp_size=3) for rank in range(3)]
    assert [rank.mine.tolist() for rank in ranks] == [[0, 1], [2, 3], [4, 5]]
    assert {rank.global_batch_size for rank in ranks} == {6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size_per_gpu": 0}, "batch_size_per_gpu must be at least 1, not 0"),
        ({"batch_size_per_gpu": 1.5}, "batch_size_per_gpu must be a whole number, not 1.5"),
        ({"dp_size": -1}, "dp_size must be at least 1, not -1"),
        ({"dp_rank": 2}, "dp_rank 2 is outside 0 .. dp_size - 1 = 1"),
        ({"seed": -1}, "seed -1 is outside"),
        ({"last_batch": "keep"}, "last_batch must be drop or pad, not 'keep'"),
    ],
)
def test_sharding_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Sharding(**({"batch_size_per_gpu": 1, "dp_rank": 0, "dp_size": 2} | change))
