"""From the engine-neutral plan to the tensor parallel section of DeepSpeed's configuration.

DeepSpeed matches a parameter's full name against regular expressions and takes the first spec that fits. A spec that
fits nothing silently splits nothing. So the patterns made here are anchored at both ends and leave only layer indices
open, and `check_plan` makes sure that each fits exactly the modules that the plan gives its style to.
Three styles need no spec. DeepSpeed's `vocab_parallel_lm_head` splits the output embedding, and the input embedding
with it where the two are tied. `zero` splits an untied input embedding, and row-wise layers with a whole input, with
layers of DeepSpeed's that no spec asks for.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from tp2d_mesh import Plan, Style

from tp2d_autotp.families import AUTOTP_FAMILIES

_SPECS: dict[Style, dict[str, Any]] = {
    Style.COLUMN: {"partition_type": "column"},
    Style.COLUMN_GATHER: {"partition_type": "column", "gather_output": True},
    Style.ROW: {"partition_type": "row"},
    Style.PARTIAL_GRADIENT: {"partition_type": "skip", "grad_allreduce": True},
}
_WITHOUT_SPEC = (Style.VOCAB_EMBEDDING, Style.VOCAB_HEAD, Style.ROW_SPLIT)


def tensor_parallel_section(plan: Plan) -> dict[str, Any]:
    """The section `tensor_parallel` of DeepSpeed's configuration, for `plan.tp` > 1.

    Raises:
        ValueError: a style of the plan that AutoTP does not have; by the module's name.
    """
    heads = [name.rpartition(".")[2] for name, style in plan.modules.items() if style is Style.VOCAB_HEAD]
    return {
        "autotp_size": plan.tp,
        "vocab_parallel_lm_head": True,
        "partition_config": {
            "use_default_specs": False,
            "lm_head_patterns": heads,
            "layer_specs": layer_specs(plan),
        },
    }


def layer_specs(plan: Plan) -> list[dict[str, Any]]:
    """DeepSpeed's `layer_specs`, one for each style and kind of module.

    Raises:
        ValueError: a style of the plan that AutoTP does not have; by the module's name.
    """
    specs: dict[str, dict[str, Any]] = {}
    for name, style in plan.modules.items():
        if style not in _SPECS and style not in _WITHOUT_SPEC:
            raise ValueError(
                f"{name} asks for the tensor parallel style {style!s}, which has no exact translation to DeepSpeed "
                f"AutoTP: use the engine fsdp2, or tp_size=1."
            )
        if style in _SPECS:
            pattern = _pattern(name, "(weight|bias)" if style is Style.PARTIAL_GRADIENT else "weight")
            specs[pattern] = {"patterns": [pattern], **_SPECS[style]}
    return list(specs.values())


def _pattern(module: str, leaf: str) -> str:
    r"""`model.layers.3.mlp.up_proj` -> `^model\.layers\.\d+\.mlp\.up_proj\.weight$`."""
    parts = [r"\d+" if part.isdigit() else re.escape(part) for part in module.split(".")]
    return "^" + r"\.".join([*parts, leaf]) + "$"


def check_plan(plan: Plan, model: Any, *, verified_only: bool = True) -> None:
    """Refuse a model that AutoTP would not split exactly as planned; a model on the meta device is enough.

    Args:
        plan: the model's plan.
        model: the model before it is split.
        verified_only: refuse families that are not in `AUTOTP_FAMILIES`; the parity sweep turns this off.

    Raises:
        ValueError: by the name of the family or module; the message suggests the other engine.
    """
    if plan.tp == 1:
        return
    specs = layer_specs(plan)
    model_type = model.config.model_type
    if verified_only and model_type not in AUTOTP_FAMILIES:
        raise ValueError(
            f"model type {model_type!r} has not been checked for exact gradients under DeepSpeed AutoTP: use the "
            f"engine fsdp2, tp_size=1, or one of: {', '.join(sorted(AUTOTP_FAMILIES))}."
        )
    check_specs(specs, plan, [name for name, _ in model.named_parameters(remove_duplicate=False)])
    _check_vocabulary(plan, model)


def check_specs(specs: Sequence[Mapping[str, Any]], plan: Plan, parameters: Iterable[str]) -> None:
    """Refuse specs that do anything else to a parameter than the plan says.

    Args:
        specs: DeepSpeed's `layer_specs`.
        plan: the model's plan.
        parameters: the full names of the unsharded model's parameters.

    Raises:
        ValueError: a spec that fits no parameter, or a parameter that the specs treat otherwise than the plan.
    """
    names = list(parameters)
    for spec in specs:
        if not any(_fits(spec, name) for name in names):
            raise ValueError(
                f"the AutoTP spec {spec['patterns']} fits no parameter of the model, so DeepSpeed would split nothing "
                f"by it: correct its pattern."
            )
    for name in names:
        module, _, leaf = name.rpartition(".")
        style = plan.modules.get(module)
        if leaf == "bias" and style is not Style.PARTIAL_GRADIENT:
            continue  # DeepSpeed asks for the weight only, and treats the bias as the layer needs
        planned = None if style in _WITHOUT_SPEC else style
        found = next((_style(spec) for spec in specs if _fits(spec, name)), None)
        if found is not planned:
            raise ValueError(
                f"{name}: the AutoTP specs say {found or 'nothing'} where the plan says {planned or 'nothing'}; its "
                f"gradient would be wrong on every tp rank."
            )


def _fits(spec: Mapping[str, Any], name: str) -> bool:
    return any(re.match(pattern, name) for pattern in spec["patterns"])


def _style(spec: Mapping[str, Any]) -> Style | None:
    """The style that a spec stands for; None for one that only skips."""
    meaning = {key: value for key, value in spec.items() if key != "patterns" and value}
    return next((style for style, said in _SPECS.items() if said == meaning), None)


def _check_vocabulary(plan: Plan, model: Any) -> None:
    """DeepSpeed finds the output embedding by the last part of its name, and knows two kinds of input embedding."""
    for name, style in plan.modules.items():
        if style is Style.VOCAB_HEAD:
            leaf = name.rpartition(".")[2]
            same = [n for n, m in model.named_modules() if n.rpartition(".")[2] == leaf and isinstance(m, nn.Linear)]
            if same != [name]:
                raise ValueError(
                    f"AutoTP would take {', '.join(same)} for the output embedding {name}: use the engine fsdp2."
                )
        if style is Style.VOCAB_EMBEDDING:
            kind = type(model.get_submodule(name))
            if kind.forward is not nn.Embedding.forward and kind.__name__ != "Gemma3TextScaledWordEmbedding":
                raise ValueError(
                    f"{name} is a {kind.__name__}, whose forward AutoTP cannot split over the vocabulary: use the "
                    f"engine fsdp2, or tp_size=1."
                )
