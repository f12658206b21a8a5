"""The configuration that a run has stored, by this version or an older one, and what options given over it mean."""

import logging
from collections.abc import Mapping
from typing import Any

import yaml

from tp2d_train.config import TrainConfig, option_fields
from tp2d_train.fields import text_of
from tp2d_train.runs.folder import RunFolder

logger = logging.getLogger(__name__)

PLACE = ("name", "storage_path", "resume")  # where a run is looked for, and how: nothing that a run has
MESH = ("tp_size", "dp_size", "num_workers")
BATCH = ("batch_size_per_gpu", "gradient_accumulation_steps", "global_batch_size")
_MARKS = {"name", "storage_path", "model_name"}  # what every version has written


def read_stored(folder: RunFolder) -> TrainConfig | None:
    """The configuration of the last start in `folder`; None where there is none.

    An option that its writer did not know has its default. One that this version does not know is left out.

    Raises:
        ValueError: the file is damaged, or was not written by this program.
    """
    if not folder.config.exists():
        return None
    content = _content(folder)
    if not content.keys() >= _MARKS:
        raise ValueError(f"{folder.path} exists and is not a run of this program: choose another --name")
    try:
        return TrainConfig(**{name: value for name, value in content.items() if name in _names()})
    except ValueError as error:
        raise _damaged(folder, error) from None


def overlaid(folder: RunFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """The stored settings of a run with `given` on top; what follows from a given one follows anew.

    Of the mesh: `num_workers` stays where `tp_size` is given alone, `tp_size` where one of the others is. Of the batch:
    `global_batch_size` stays, and the accumulation follows. Where `batch_size_per_gpu` is not given and no longer fits,
    it becomes the largest lower one that does, which costs no memory.

    Raises:
        ValueError: as `read_stored`, or the sizes cannot fit.
    """
    stored = read_stored(folder)
    if stored is None:
        return dict(given)
    if unknown := sorted(map(str, _content(folder).keys() - _names())):
        logger.warning("%s: left out %s, which this version does not know", folder.config, ", ".join(unknown))
    given = {"batch_size_per_gpu" if name == "batch_size" else name: value for name, value in given.items()}
    usual = {name: value for name, value in stored.as_dict().items() if name not in (*PLACE, *MESH, *BATCH)}
    mesh = _mesh(stored, given)
    return {**usual, **mesh, **_batch(stored, given, mesh=mesh), **given}


def difference(old: TrainConfig, new: TrainConfig, *, fixed: bool) -> str:
    """The options that two configurations of a run have unlike, `name old -> new, ...`.

    Args:
        old: the one before.
        new: the one now.
        fixed: those that a run cannot change, or those that it can.
    """
    names = [field.name for field in option_fields() if field.metadata["fixed"] is fixed and field.name not in PLACE]
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in names]
    return ", ".join(f"{name} {text_of(before)} -> {text_of(now)}" for name, before, now in pairs if before != now)


def _content(folder: RunFolder) -> dict[str, Any]:
    try:
        content = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _damaged(folder, error) from None
    return content if isinstance(content, dict) else {}


def _damaged(folder: RunFolder, error: Exception) -> ValueError:
    return ValueError(f"run {folder.path.name!r} cannot be resumed, its configuration is damaged: {error}")


def _names() -> set[str]:
    return {field.name for field in option_fields()}


def _mesh(stored: TrainConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the mesh, without those that follow from the given ones."""
    new = {name for name in MESH if given.get(name) is not None}
    follows = {"dp_size"} if new & {"tp_size", "num_workers"} else set()
    follows |= {"num_workers"} if "dp_size" in new else set()
    return {name: given.get(name, getattr(stored, name)) for name in MESH if name in new or name not in follows}


def _batch(stored: TrainConfig, given: Mapping[str, Any], *, mesh: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the batch, without those that follow; whether the product is the stored one is asked later."""
    total = stored.global_batch_size
    wanted = given.get("batch_size_per_gpu", stored.batch_size_per_gpu)
    sizes = TrainConfig(**mesh, batch_size_per_gpu=wanted)  # checks the given ones
    least = sizes.batch_size_per_gpu if "batch_size_per_gpu" in given else 1
    rows = range(sizes.batch_size_per_gpu, least - 1, -1)
    fitting = [fewer for fewer in rows if total % (sizes.dp_size * fewer) == 0]
    if not fitting or not given.keys().isdisjoint({"gradient_accumulation_steps", "global_batch_size"}):
        return {"batch_size_per_gpu": sizes.batch_size_per_gpu}
    return {"batch_size_per_gpu": fitting[0], "global_batch_size": total}
