"""What a comparison consists of: a run for each mesh, engine and recomputation, alike in everything else.

Nothing here imports torch, so that a wrong option is answered at once.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from tp2d_train.config import RECOMPUTATION, TrainConfig
from tp2d_train.engines import ENGINES
from tp2d_train.fields import text_of
from tp2d_train.runs.stored import BATCH, MESH, PLACE, difference
from tp2d_train.setup.check import DATASET_FIELDS, PATH_FIELDS, absolute_paths
from tp2d_train.sizes import mesh_sizes

MAX_STEPS = 20
SEEN = ("progress", "log_level")
"""Options of what a user sees: they may change when a comparison goes on."""

_MESH = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison.

    Args:
        name: of the run, e.g. `fsdp2-2x1`.
        settings: of `TrainConfig` by name, without `storage_path`.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def mesh(self) -> str:
        """Its dp x tp, e.g. `2x1`."""
        return f"{self.settings['dp_size']}x{self.settings['tp_size']}"

    def config(self, storage_path: str) -> TrainConfig:
        """Its configuration as a run in the folder of the comparison.

        Raises:
            ValueError: the sizes do not fit.
        """
        return TrainConfig(**{**self.settings, "name": self.name, "storage_path": storage_path})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides what a comparison computes.

    Args:
        meshes: dp x tp, e.g. `2x1`.
        engines: keys of `ENGINES`.
        activation_checkpointing: choices of the option.
        run: the options that all runs have, by name, with `global_batch_size` and `batch_size_per_gpu`.

    Raises:
        ValueError: a mesh that is none, an unknown engine or recomputation, or an option that no run can have.
    """

    meshes: tuple[str, ...]
    engines: tuple[str, ...]
    activation_checkpointing: tuple[str, ...]
    run: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_known("engines", self.engines, ENGINES)
        _check_known("activation_checkpointing", self.activation_checkpointing, RECOMPUTATION)
        for mesh in self.meshes:
            mesh_of(mesh)
        self.base()

    @classmethod
    def of(cls, given: Mapping[str, Any], *, stored: Self | None = None) -> Self:
        """The settings that a command line means.

        The world is that of `num_workers`, or of the mesh that a YAML file gives. The global batch is the given one, or
        that of the run in the file, or a micro-batch for every rank of the largest dp. The micro-batch has the same
        rows on every mesh: those that are given, or the most up to the default that fit all meshes.

        Args:
            given: options of `TrainConfig` by name, and `meshes`, `engines`, and `activation_checkpointing` as a list.
            stored: those of the comparison that goes on; what is given comes before them.

        Raises:
            ValueError: as the class.
        """
        known: dict[str, Any] = {} if stored is None else dataclasses.asdict(stored)
        meshes = given.get("meshes") or (known.get("meshes") if not _names_a_world(given) else None)
        meshes = tuple(dict.fromkeys(meshes or meshes_of_world(given)))
        own = {name: value for name, value in given.items() if name not in _VARIED}
        run = {"max_steps": MAX_STEPS, **known.get("run", {}), **own}
        sizes = {**{name: run[name] for name in BATCH if name in run}, **given}
        rest = _absolute({name: value for name, value in run.items() if name not in BATCH})
        dps = [mesh_of(mesh)[0] for mesh in meshes]
        modes = given.get("activation_checkpointing") or known.get("activation_checkpointing")
        return cls(
            meshes=meshes,
            engines=tuple(dict.fromkeys(given.get("engines") or known.get("engines") or ENGINES)),
            activation_checkpointing=tuple(dict.fromkeys(modes or (TrainConfig.activation_checkpointing,))),
            run={**rest, **shared_batch(sizes, dps=dps, default=_one_rank(rest).batch_size_per_gpu)},
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` gave, after its way through JSON."""
        lists = {name: tuple(values[name]) for name in ("meshes", "engines", "activation_checkpointing")}
        return cls(**lists, run=values["run"])

    def base(self) -> TrainConfig:
        """What all runs share, as a run of one rank."""
        return _one_rank(self.run)

    def cells(self) -> Iterator[Cell]:
        """The runs: by mesh, then by engine, then by recomputation."""
        several = len(self.activation_checkpointing) > 1
        for mesh in self.meshes:
            dp, tp = mesh_of(mesh)
            for engine in self.engines:
                for mode in self.activation_checkpointing:
                    own = {"engine": engine, "dp_size": dp, "tp_size": tp, "activation_checkpointing": mode}
                    name = f"{engine}-{mesh}-{mode}" if several else f"{engine}-{mesh}"
                    yield Cell(name=name, settings={**self.run, **own, "log_interval": 1})

    def changes(self, new: Self) -> str:
        """What `new` has unlike, `name old -> new, ...`; what only shows a run differently does not count."""
        lists = [
            f"{name} {text_of(before)} -> {text_of(now)}"
            for name in ("meshes", "engines", "activation_checkpointing")
            if (before := getattr(self, name)) != (now := getattr(new, name))
        ]
        old_base, new_base = self.base(), new.base()
        alike = dataclasses.replace(new_base, **{name: getattr(old_base, name) for name in SEEN})
        options = [difference(old_base, alike, fixed=fixed) for fixed in (True, False)]
        return ", ".join(filter(None, [*lists, *options]))


def mesh_of(text: str) -> tuple[int, int]:
    """`(dp, tp)` of `2x1`.

    Raises:
        ValueError: it is no mesh.
    """
    found = _MESH.fullmatch(text)
    if found is None:
        raise ValueError(f"meshes has {text!r}, which is no dp x tp such as 2x1")
    return int(found[1]), int(found[2])


def meshes_of_world(given: Mapping[str, Any]) -> list[str]:
    """All meshes of as many ranks as the options mean, dp from large to small.

    Raises:
        ValueError: the options of the mesh do not fit one another.
    """
    tp = given.get("tp_size") or TrainConfig.tp_size
    world = given.get("num_workers") or mesh_sizes(tp=tp, dp=given.get("dp_size"), workers=None)[1]
    return [f"{world // tp}x{tp}" for tp in range(1, world + 1) if world % tp == 0]


def shared_batch(given: Mapping[str, Any], *, dps: Sequence[int], default: int) -> dict[str, int]:
    """`global_batch_size` and `batch_size_per_gpu` of all runs; see `Settings.of`.

    Args:
        given: options by name; of the batch, and `dp_size`.
        dps: the dp sizes of all meshes.
        default: rows of a micro-batch where none are given.
    """
    rows, size = given.get("global_batch_size"), given.get("batch_size_per_gpu")
    if rows is None:
        steps = given.get("gradient_accumulation_steps") or 1
        rows = (size or default) * steps * (given.get("dp_size") or max(dps))
    if size is None:
        shares = [rows // dp for dp in dps if rows % dp == 0]  # a mesh whose dp does not divide the batch is refused
        size = max(size for size in range(1, default + 1) if all(share % size == 0 for share in (rows, *shares)))
    return {"global_batch_size": rows, "batch_size_per_gpu": size}


_VARIED = (*MESH, *PLACE, "engine", "gradient_accumulation_steps", "meshes", "engines", "activation_checkpointing")


def _names_a_world(given: Mapping[str, Any]) -> bool:
    return any(given.get(name) for name in MESH)


def _check_known(name: str, values: Sequence[str], known: Iterable[str]) -> None:
    choices = tuple(known)
    for value in values:
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}: choose {', '.join(choices)}")


def _one_rank(run: Mapping[str, Any]) -> TrainConfig:
    return TrainConfig(**{**run, "tp_size": 1, "dp_size": 1, "log_interval": 1})


def _absolute(run: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the paths of files that exist made absolute: a comparison may go on from another folder."""
    config = absolute_paths(_one_rank(run))
    paths = {name: getattr(config, name) for name in (*PATH_FIELDS, *DATASET_FIELDS) if name in run}
    return {**run, **paths}
