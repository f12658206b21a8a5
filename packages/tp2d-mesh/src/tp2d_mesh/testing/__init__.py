"""Run a function on a real dp x tp mesh of local gloo processes: distributed code, tested in milliseconds.

    def total(mesh, value):
        x = torch.tensor([value * (mesh.rank + 1)])
        dist.all_reduce(x, group=mesh.tp_group)
        return x

    def test_total():
        assert run_on_mesh(total, 10, tp=2) == [30, 30]

The ranks are forked from a server that has torch loaded (and transformers where it is installed), so that a call pays
for no import of those; the first call of a process starts the server. Every rank has one thread.

Inside `reuse_ranks` the ranks of a layout live on from call to call, and keep their process groups and what their
functions have imported. A session fixture does it for a whole suite:

    @pytest.fixture(scope="session", autouse=True)
    def live_ranks():
        with reuse_ranks():
            yield

What a call costs, on two cores: the server 4 s, once. A function that does nothing takes 0.05 s on new processes and
0.002 s on live ones for 1x1, 0.15 s and 0.015 s for 2x2. A tiny model built, sharded and stepped once on 2x2 takes, in
seconds of all ranks together, 1.3 on new and 0.5 on live ones with FSDP2, 1.8 and 0.35 with DeepSpeed, which each new
rank imports in 0.4 s. A live rank that has stepped both engines has 0.09 GB of its own beside the 0.26 GB it shares
with the server.
"""

from tp2d_mesh.testing._ranks import MeshError
from tp2d_mesh.testing.run import reuse_ranks, run_on_mesh, run_script

__all__ = ["MeshError", "reuse_ranks", "run_on_mesh", "run_script"]
