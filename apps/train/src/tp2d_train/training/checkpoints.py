"""What a checkpoint of a run holds, and how a run takes it back: the link between the loop and tp2d-ckpt.

Besides the engine's tensors: the run's counters and times, the data position, the engine's own small state and the
settings, equal on all ranks; and this rank's random state.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from tp2d_ckpt import Checkpointer, CheckpointInfo, capture_rng, keep_aside, list_checkpoints, restore_rng
from tp2d_mesh import Mesh

from tp2d_train.contracts import Engine, Loader
from tp2d_train.training.state import RunState

Report = Callable[[CheckpointInfo, Mapping[str, Any]], None]


class Checkpoints:
    """Saves and restores one run.

    Args:
        checkpointer: commits tensors and state, collectively.
        newest: finds the newest whole checkpoint, collectively.
        mesh: the mesh of all ranks.
        engine: whose tensors are saved, and filled in place.
        loader: the training data, whose position is saved.
        settings: the configuration, saved for whoever opens the checkpoint later.
        report: called on every rank with a committed checkpoint and its metrics, e.g. Ray's report.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        newest: Callable[[], CheckpointInfo | None],
        mesh: Mesh,
        engine: Engine,
        loader: Loader,
        settings: Mapping[str, Any],
        report: Report | None = None,
    ) -> None:
        self._checkpointer = checkpointer
        self._newest = newest
        self._engine = engine
        self._loader = loader
        self._mesh = mesh
        self._settings = dict(settings)
        self._report = report

    def save(self, run: RunState, *, seconds: Mapping[str, float], metrics: Mapping[str, Any]) -> CheckpointInfo:
        """Commits the run as it is; a collective. When it returns, a kill loses nothing up to here.

        Args:
            run: the counters.
            seconds: the run's time by phase; rank 0's is saved.
            metrics: what to report with it, plain numbers.
        """
        state = {
            **self._of_rank_0({"run": run.as_dict(), "seconds": dict(seconds)}),
            "data": self._loader.state_dict(),
            "engine": self._engine.extra_state(),
            "settings": self._settings,
        }
        own = {"rng": capture_rng(self._mesh.device)}
        info = self._checkpointer.save(step=run.step, tensors=self._engine.state(), state=state, rank_state=own)
        if self._report is not None:
            self._report(info, metrics)
        return info

    def restore(self) -> tuple[RunState, dict[str, float], CheckpointInfo | None]:
        """Takes back the newest whole checkpoint; a collective.

        Where another mesh saved, the random state stays as the engine seeded it: no rank's old one is this one's.

        Returns:
            The counters, the time by phase, and the checkpoint; a new run's and None where there is none.
        """
        info = self._newest()
        if info is None:
            return RunState(), {}, None
        restored = self._checkpointer.load(info, self._engine.state())
        self._engine.load_extra_state(restored.state["engine"])
        self._loader.load_state_dict(restored.state["data"])
        if restored.rank_state is not None:
            restore_rng(restored.rank_state["rng"], self._mesh.device)
        return RunState.from_dict(restored.state["run"]), restored.state["seconds"], info

    def keep_sound(self, *, before: int) -> None:
        """Keeps the newest checkpoint from before that step for good, whatever rotates the others; rank 0 does it.

        Args:
            before: a step that was skipped or had a spike. A checkpoint that was taken right before it may already
                hold what ruined it, so the one that is kept has a good step after it.
        """
        if self._mesh.rank == 0 and (info := self._newest_before(before)) is not None:
            keep_aside(info)

    def way_back(self, *, before: int | None) -> str:
        """A sentence that names the newest checkpoint from before that step, and those after it; a collective."""
        return self._of_rank_0({"sentence": self._way_back(before) if self._mesh.rank == 0 else ""})["sentence"]

    def _way_back(self, before: int | None) -> str:
        sound = None if before is None else self._newest_before(before)
        if sound is None:
            return "There is no checkpoint from before: start anew under another name."
        newer = [info.path.name for info in self._in_folder() if info.sequence > sound.sequence]
        delete = f" delete {', '.join(newer)}, which may hold a ruined model, and" if newer else ""
        where = f"The newest checkpoint from before is {sound.path}, of step {sound.step}"
        return f"{where}: to go on from it,{delete} resume with other settings, such as a lower learning_rate."

    def _newest_before(self, step: int) -> CheckpointInfo | None:
        return next((info for info in reversed(self._in_folder()) if info.step + 1 < step), None)

    def _in_folder(self) -> list[CheckpointInfo]:
        return list_checkpoints(self._checkpointer.root)

    def _of_rank_0(self, values: dict[str, Any]) -> dict[str, Any]:
        """Rank 0's `values` on all ranks: clocks differ, and so may the last bit of a loss summed in another order."""
        box = [values]
        dist.broadcast_object_list(box, src=0, group=self._mesh.world_group)
        return box[0]
