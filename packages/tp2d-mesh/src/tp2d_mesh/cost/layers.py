"""A few layers of a model that stand for all of it: one or two of each kind.

Layers of a kind have parameters of the same names and shapes and the same entry in the configuration's `layer_types`.
What one more layer takes is then the difference of two short models, however many layers the whole one has.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn


def kinds_of_layers(model: Any, layers: Sequence[str]) -> list[list[int]]:
    """The positions of the layers of each kind; the kind of the last layer is the last one.

    Args:
        model: a causal language model, a skeleton on the meta device for instance.
        layers: full names of its layers, in order.
    """
    types = getattr(model.config.get_text_config(), "layer_types", None) or [None] * len(layers)
    found: dict[Any, list[int]] = {}
    for i, name in enumerate(layers):
        layer = model.get_submodule(name)
        shapes = tuple((parameter, tuple(p.shape)) for parameter, p in layer.named_parameters())
        found.setdefault((type(layer), types[i], shapes), []).append(i)
    return sorted(found.values(), key=lambda positions: positions[-1])


def with_layers(model: Any, layers: Sequence[str], keep: Sequence[int]) -> Any:
    """A copy of a model with some of its layers only, its configuration changed accordingly; the model stays as it is.

    Args:
        model: parameters on the meta device, so that a copy takes no memory.
        layers: full names of its layers, in order; all in one list.
        keep: positions of the layers that the copy has.
    """
    holder = layers[0].rpartition(".")[0]
    memo: dict[int, Any] = {}
    kept = nn.ModuleList([copy.deepcopy(model.get_submodule(layers[i]), memo) for i in keep])
    memo[id(model.get_submodule(holder))] = kept
    short = copy.deepcopy(model, memo)
    configs = {id(m.config): m.config for m in short.modules() if hasattr(m, "config")}
    for config in configs.values():
        _cut(config.get_text_config(), keep)
    return short


def _cut(config: Any, keep: Sequence[int]) -> None:
    types = getattr(config, "layer_types", None)
    if types is not None and len(types) != len(keep):
        config.layer_types = [types[i] for i in keep]
    config.num_hidden_layers = len(keep)
