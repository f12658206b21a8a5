"""The run as one of the ranks that torchrun or Slurm has started: nothing is spawned, rank 0 plays the driver."""

import contextlib
import os
import re
import signal
from collections.abc import Mapping
from datetime import timedelta

from tp2d_train.config import TrainConfig
from tp2d_train.launch.view import live_view, say
from tp2d_train.outcome import Diverged, Result, RunFailed, RunStopped
from tp2d_train.runs.run import Run


def join(config: TrainConfig, world: Mapping[str, str]) -> Result:
    """Trains as the rank that `world` says; a collective.

    Args:
        config: the configuration, equal on all ranks.
        world: what `find_world` gave.

    Raises:
        ValueError: the configuration cannot work. Rank 0 raises it; the others leave with exit code 2.
        RunFailed: this rank failed.
        RunStopped: the run was asked to stop, and saved first.
    """
    if int(world["WORLD_SIZE"]) != config.num_workers:
        raise ValueError(
            f"{world['WORLD_SIZE']} ranks were started, and tp_size {config.tp_size} x dp_size {config.dp_size} = "
            f"{config.num_workers}: leave out dp_size and num_workers, or start {config.num_workers} ranks"
        )
    import torch.distributed as dist
    from tp2d_mesh.devices import activate, backend_for, bound_device, select_device

    os.environ.update(world)
    device = select_device(config.device)
    activate(device)
    timeout = timedelta(seconds=config.timeout_s)
    dist.init_process_group(backend_for(device), timeout=timeout, device_id=bound_device(device))
    try:
        with contextlib.ExitStack() as stack:
            run = _agree(config, stack)
            return _train(run)
    finally:
        dist.destroy_process_group()


def find_world(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The world that torchrun or Slurm has put this process into, in torch's variables; None where neither has.

    Slurm does not say where rank 0 listens: that is the first node of the job, at a port made of the job's number,
    unless MASTER_ADDR and MASTER_PORT say otherwise.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        return {name: environment[name] for name in names if name in environment}
    if "SLURM_PROCID" not in environment or "SLURM_NTASKS" not in environment:
        return None
    port = 20000 + int(environment["SLURM_JOB_ID"]) % 20000
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_node(environment["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
    }


def first_node(nodes: str) -> str:
    """The first host of Slurm's list of nodes: `gpu-01` of `gpu-[01-04,07],cpu-1`."""
    match = re.match(r"([^,\[]+)(?:\[([^],-]+)[^]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError(f"SLURM_JOB_NODELIST {nodes!r} names no node: set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())


def _agree(config: TrainConfig, stack: contextlib.ExitStack) -> Run:
    """The run that rank 0 has found, checked and locked; the configuration's problem, if it has one, on all ranks."""
    import torch.distributed as dist

    from tp2d_train.setup.check import check

    found: list[Run | ValueError | None] = [None]
    if dist.get_rank() == 0:
        try:
            found = [_open(check(config, progress=say(config)), stack)]
        except ValueError as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    run = found[0]
    if isinstance(run, Run):
        return run
    if dist.get_rank() == 0 and run is not None:
        raise run
    raise SystemExit(2)


def _open(run: Run, stack: contextlib.ExitStack) -> Run:
    if run.finished:
        print(run.finished_message())
        return run
    stack.enter_context(run.locked())
    run.start()
    stack.enter_context(live_view(run))
    print(run.start_message(), flush=True)
    return run


def _train(run: Run) -> Result:
    from tp2d_train.training.worker import train_func

    if run.finished:
        return Result(path=run.path, summary=run.summary())
    try:
        summary = train_func(run.config.as_dict())
    except Diverged as error:
        raise RunFailed(f"training diverged: {error}") from error
    except Exception as error:
        cause = " ".join(str(error).split())
        raise RunFailed(f"rank {os.environ['RANK']} failed: {type(error).__name__}: {cause}") from error
    if not summary["finished"]:
        raise RunStopped(f"stopped; {run.next_command()}", signal=signal.SIGTERM)
    return Result(path=run.path, summary=summary)
