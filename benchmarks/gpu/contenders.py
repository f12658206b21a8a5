"""Who is compared: a table of loops and their switches."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from tp2d_mesh import EngineSpec

from gpu.shapes import Workload

KINDS = ("plain", "compiled", "titan", "ours")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One loop with its switches.

    Args:
        name: unique in a table.
        kind: one of `KINDS`.
        mixed: how it computes in bf16: `autocast`, `masters` (bf16 weights beside fp32 ones) or `fsdp2`.
        recompute: `none`, `selective` or `full`.
        attention: what the loop calls an attention.
        options: fields of `EngineSpec` with their values; for `ours`.
    """

    name: str
    kind: str
    mixed: str = "fsdp2"
    recompute: str = "none"
    attention: str = "sdpa"
    options: tuple[tuple[str, Any], ...] = ()


def contenders(workload: Workload, *, gpu: bool) -> list[Contender]:
    """Everyone for a workload, in the order in which they run; the plain loop first, with which the others agree.

    Args:
        workload: packed rows have other attentions.
        gpu: whether it runs on one; on the CPU there are fewer, and `mask` stands for GPU kernels.
    """
    packed = workload.documents is not None
    return [*_plain(gpu), *_compiled(gpu), *_titan(gpu=gpu, packed=packed), *_ours(gpu=gpu, packed=packed)]


def _plain(gpu: bool) -> list[Contender]:
    modes = ("full", "none") if gpu else ("none",)
    made = [
        Contender(name=f"transformers, autocast, recompute {mode}", kind="plain", mixed="autocast", recompute=mode)
        for mode in modes
    ]
    masters = Contender(
        name="transformers, bf16 beside fp32, recompute full", kind="plain", mixed="masters", recompute="full"
    )
    return [*made, masters]


def _compiled(gpu: bool) -> list[Contender]:
    modes = ("full", "none") if gpu else ("none",)
    return [
        Contender(name=f"transformers, FSDP2, compiled, recompute {mode}", kind="compiled", recompute=mode)
        for mode in modes
    ]


def _titan(*, gpu: bool, packed: bool) -> list[Contender]:
    main, *others = (("varlen", "flex") if gpu else ("mask",)) if packed else ("sdpa",)
    modes = ("selective", "full", "none") if gpu else ("selective",)
    made = [_one_titan(main, mode, "fsdp2") for mode in modes]
    made += [_one_titan(other, "selective", "fsdp2") for other in others]
    return [*made, _one_titan(main, "selective", "autocast")] if gpu else made


def _one_titan(attention: str, mode: str, mixed: str) -> Contender:
    name = f"as torchtitan, {mixed}, {attention}, recompute {mode}"
    return Contender(name=name, kind="titan", mixed=mixed, attention=attention, recompute=mode)


def _ours(*, gpu: bool, packed: bool) -> list[Contender]:
    chosen: list[dict[str, Any]] = [
        {"compile": True, "activation_checkpointing": "selective"},
        {"compile": True, "activation_checkpointing": "none"},
        {"compile": True, "activation_checkpointing": "full"},
        {"compile": False, "activation_checkpointing": "selective"},
    ]
    if packed:
        chosen.append({"compile": True, "activation_checkpointing": "selective", "attn_implementation": "sdpa"})
    if not gpu:
        chosen = [chosen[0], {"compile": False, "activation_checkpointing": "full"}]
    return [_one_of_ours(options) for options in chosen]


def _one_of_ours(options: dict[str, Any]) -> Contender:
    known = {field.name for field in dataclasses.fields(EngineSpec)}
    if not set(options) <= known:
        raise ValueError(f"EngineSpec has no {sorted(set(options) - known)}: its fields are {sorted(known)}.")
    words = {"compile": {True: "compiled", False: "eager"}.get(options["compile"])}
    words["recompute"] = f"recompute {options['activation_checkpointing']}"
    words["attention"] = options.get("attn_implementation") and f"attention {options['attn_implementation']}"
    name = ", ".join(["tp2d", *(word for word in words.values() if word)])
    return Contender(name=name, kind="ours", options=tuple(options.items()))
