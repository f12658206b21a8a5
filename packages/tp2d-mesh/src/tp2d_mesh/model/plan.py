"""The plan of a model: how each parameter is split over tp. Both engines follow it.

The source is the model's own `tp_plan` (transformers ships one with a model family): module patterns and style
names. This module turns it into one entry per module and per parameter, adds the vocabulary, and refuses what is not
known to be exact: an unknown style, an unchecked family, sizes that do not divide, a parameter without a place.
It reads the model by its attributes only (`config`, `tp_plan`, `named_parameters`, ...). So a model on the meta device
is enough, and the driver can plan before any worker starts.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import nn

from tp2d_mesh.model.causality import check_causal
from tp2d_mesh.model.families import VERIFIED_FAMILIES


class Style(StrEnum):
    """How a module computes under tensor parallelism; the values are transformers' own names where it has one."""

    COLUMN = "colwise"  # weight rows split; whole input, split output
    COLUMN_GATHER = "colwise_gather_output"  # the same, output gathered
    ROW = "rowwise"  # weight columns split; split input, output summed
    ROW_SPLIT = "rowwise_split_input"  # the same, a whole input is split first
    VOCAB_EMBEDDING = "embedding_rowwise"  # table rows (the vocabulary) split; output summed
    VOCAB_HEAD = "vocabulary_head"  # the output embedding: rows split, logits stay split
    PARTIAL_GRADIENT = "replicated_with_grad_allreduce"  # whole weight on split activations: gradients must be summed


_WEIGHT_DIM = {
    Style.COLUMN: 0,
    Style.COLUMN_GATHER: 0,
    Style.ROW: 1,
    Style.ROW_SPLIT: 1,
    Style.VOCAB_EMBEDDING: 0,
    Style.VOCAB_HEAD: 0,
    Style.PARTIAL_GRADIENT: None,
}
_BIAS_DIM = {Style.COLUMN: 0, Style.COLUMN_GATHER: 0, Style.VOCAB_HEAD: 0}
_LINEAR = (Style.COLUMN, Style.COLUMN_GATHER, Style.ROW, Style.ROW_SPLIT, Style.VOCAB_HEAD)


@dataclass(frozen=True, kw_only=True)
class ParameterPlan:
    """How one parameter lies on the tp axis.

    Args:
        tp_dim: the dim that is split over tp, or None where every tp rank holds all of it.
        partial_gradient: every tp rank's backward sees only a part of this whole parameter's gradient; the parts must
            be summed over tp once per optimizer step.
    """

    tp_dim: int | None = None
    partial_gradient: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The engine-neutral plan of one model at one tp size.

    Args:
        tp: the tensor parallel size it was checked for.
        modules: full module name -> style, for every module that computes otherwise than on one rank. Empty at tp 1.
        parameters: full parameter name -> its place, for every parameter, tied ones once (under the first name).
        layers: full names of the repeated decoder layers, in order: the units of FSDP and of checkpointing.
    """

    tp: int
    modules: Mapping[str, Style]
    parameters: Mapping[str, ParameterPlan]
    layers: tuple[str, ...]


def plan_model(model: Any, *, tp: int, verified_only: bool = True) -> Plan:
    """Plan a transformers causal language model for `tp` tensor parallel ranks.

    Args:
        model: the unsharded model, on any device (meta is enough).
        tp: tensor parallel size.
        verified_only: refuse families that are not in `VERIFIED_FAMILIES`, and models that look ahead. Only the parity
            sweep turns it off.

    Raises:
        ValueError: what cannot be split exactly, by the name of the option, module or parameter; or see
            `check_causal`.
    """
    if verified_only:
        check_causal(model)
    layers = tuple(_decoder_layers(model))
    if tp == 1:
        everything = {name: ParameterPlan() for name, _ in model.named_parameters()}
        return Plan(tp=1, modules={}, parameters=everything, layers=layers)
    model_type = model.config.model_type
    check_heads(model.config, tp=tp)
    if not getattr(model, "tp_plan", None):
        raise ValueError(
            f"model type {model_type!r} ships no tensor parallel plan, so tp_size={tp} cannot split it exactly: "
            f"use tp_size=1."
        )
    modules = _module_styles(model)
    if verified_only and model_type not in VERIFIED_FAMILIES:
        raise ValueError(
            f"model type {model_type!r} has not been checked for exact gradients under tensor parallelism "
            f"(tp_size={tp}): use tp_size=1, or one of: {', '.join(sorted(VERIFIED_FAMILIES))}."
        )
    _check_modules(model, modules, tp=tp)
    _check_dropout(model, modules, tp=tp)
    parameters = dict(_parameter_plans(model, modules))
    _check_placed(model, modules)
    return Plan(tp=tp, modules=modules, parameters=parameters, layers=layers)


def check_heads(config: Any, *, tp: int) -> None:
    """Refuse attention heads that do not divide by `tp`: a head is never cut.

    Args:
        config: a transformers configuration (its text part is read).
        tp: tensor parallel size.

    Raises:
        ValueError: the configuration has no head count, or a count is not a multiple of `tp`.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise ValueError(
            f"the configuration of model type {text.model_type!r} has no num_attention_heads, so tp_size={tp} cannot "
            f"be checked against it: use tp_size=1."
        )
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    for name, count in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        if count % tp:
            fitting = [n for n in range(1, count + 1) if heads % n == 0 and kv_heads % n == 0]
            raise ValueError(
                f"{name}={count} is not divisible by tp_size={tp} ({count} % {tp} = {count % tp}): "
                f"choose tp_size from {fitting}."
            )


def _decoder_layers(model: Any) -> Iterator[str]:
    """Names of the modules transformers says must not be split over devices: the decoder layers."""
    units = set(getattr(model, "_no_split_modules", None) or ())
    names = [name for name, module in model.named_modules() if type(module).__name__ in units]
    if not names:
        raise ValueError(
            f"model type {model.config.model_type!r} does not name its decoder layers (_no_split_modules is "
            f"{sorted(units)}), so it cannot be sharded layer by layer."
        )
    for name in names:
        if not any(name.startswith(f"{other}.") for other in names):
            yield name


def _module_styles(model: Any) -> dict[str, Style]:
    """Full module name -> style, from the model's patterns and its input and output embeddings."""
    known = {style.value: style for style in Style}
    styles: dict[str, Style] = {}
    names = [name for name, _ in model.named_modules()]
    for pattern, value in model.tp_plan.items():
        regex = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+") + "$")
        matches = [name for name in names if regex.match(name)]
        if value not in known:
            where = matches[0] if matches else pattern
            raise ValueError(
                f"{where} asks for the tensor parallel style {value!r} (model type {model.config.model_type!r}), "
                f"which has no exact translation here; known are {', '.join(known)}. Use tp_size=1."
            )
        styles.update(dict.fromkeys(matches, known[value]))
    vocabulary = {id(model.get_input_embeddings()): Style.VOCAB_EMBEDDING}
    if model.get_output_embeddings() is not None:
        vocabulary[id(model.get_output_embeddings())] = Style.VOCAB_HEAD
    styles.update({name: vocabulary[id(m)] for name, m in model.named_modules() if id(m) in vocabulary})
    if Style.VOCAB_HEAD not in styles.values():
        raise ValueError(f"model type {model.config.model_type!r} has no output embedding whose logits could be split.")
    return styles


def _check_modules(model: nn.Module, styles: Mapping[str, Style], *, tp: int) -> None:
    """Every split module is of a class whose arithmetic is known, and has at least one row or column per rank."""
    for name, style in styles.items():
        module = model.get_submodule(name)
        expected = nn.Linear if style in _LINEAR else nn.Embedding if style is Style.VOCAB_EMBEDDING else nn.Module
        if not isinstance(module, expected):
            raise ValueError(
                f"{name} is a {type(module).__name__}; the style {style.value!r} is exact for {expected.__name__} "
                f"only. Use tp_size=1."
            )
        dim = _WEIGHT_DIM[style]
        weight = getattr(module, "weight", None)
        if dim is not None and weight is not None and -(-weight.shape[dim] // tp) * (tp - 1) >= weight.shape[dim]:
            raise ValueError(
                f"{name}.weight has {weight.shape[dim]} elements along dim {dim}, which leaves a rank of "
                f"tp_size={tp} without any: use a smaller tp_size."
            )


def _check_dropout(model: Any, styles: Mapping[str, Style], *, tp: int) -> None:
    """Refuse dropout beside chunks of uneven size: some tp ranks would draw more random numbers than others.

    From then on the ranks would drop different elements of activations that must be equal on all of them.
    """
    settings = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    rates = {k: v for k, v in vars(settings).items() if ("dropout" in k or "pdrop" in k) and isinstance(v, int | float)}
    drops = [f"{name}={rate}" for name, rate in rates.items() if rate > 0]
    for name, style in styles.items():
        rows = model.get_submodule(name).weight.shape[0] if style is Style.COLUMN else 0
        if drops and rows % tp:
            raise ValueError(
                f"{name}.weight has {rows} rows, which tp_size={tp} does not divide ({rows} % {tp} = {rows % tp}), and "
                f"the model uses dropout ({', '.join(drops)}), which then differs between tp ranks: set the rates to 0 "
                f"or choose another tp_size."
            )


def _parameter_plans(model: nn.Module, styles: Mapping[str, Style]) -> Iterator[tuple[str, ParameterPlan]]:
    for name, _ in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        style = styles.get(module)
        if style is None:
            yield name, ParameterPlan()
        elif style is Style.PARTIAL_GRADIENT:
            yield name, ParameterPlan(partial_gradient=True)
        elif leaf == "weight":
            yield name, ParameterPlan(tp_dim=_WEIGHT_DIM[style])
        else:
            yield name, ParameterPlan(tp_dim=_BIAS_DIM.get(style))


def _check_placed(model: Any, styles: Mapping[str, Style]) -> None:
    """Refuse a plan that leaves out parameters among split activations, and name them.

    The parent of a plain column- or row-wise projection (an attention or MLP block) computes on split activations. A
    parameter below it that the plan leaves out may get a partial gradient, which no loss curve would show.
    """
    parents = {n.rpartition(".")[0] for n, s in styles.items() if s in (Style.COLUMN, Style.ROW)}
    stray = [
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[0] not in styles and any(name.startswith(f"{parent}.") for parent in parents)
    ]
    if stray:
        raise ValueError(
            f"the tensor parallel plan of model type {model.config.model_type!r} does not say how to place "
            f"{len(stray)} parameters that lie among split activations: {', '.join(stray[:8])}"
            f"{', ...' if len(stray) > 8 else ''}. Use tp_size=1."
        )
