"""Whether a type's logits are its output embedding of its base model's last hidden state, and the loss in chunks exact.

    python benchmarks/heads.py --sweep            # every type, in 4 minutes; writes the table of results
    python benchmarks/heads.py --sweep bert xlm   # some types, printed only

A tiny model of each type, in float64 where that runs and else in float32, with noise added to every parameter, is
called as the engines call it: on plain rows, on packed rows where the type takes them, in training and in evaluation
mode, with the numbers for its logits (a scale, a soft cap) as they come and changed. `transform(output(base(...)))`
must equal the model's logits to the last digits, and every gradient of the loss in chunks of 5 tokens must equal that
of torch's cross-entropy on the model's logits. A type that is not in `HEAD_FAMILIES` is tried without a transform.
Exits with 1 if `HEAD_FAMILIES` differs from what is found.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from causality import built
from common import RESULTS, swept, table, versions, write_result
from parity import first_line
from parity_packed import time_limit
from tiny_sizes import default_config, tiny_sizes
from tp2d_mesh.model.loss.head import head_loss_sum
from tp2d_mesh.model.loss.heads import HEAD_FAMILIES, Head, head_of
from tp2d_mesh.model.loss.logits import UNCHANGED
from tp2d_mesh.model.loss.tokens import IGNORED, shifted_labels
from tp2d_mesh.model.packed import PACKED_FAMILIES, forward_inputs
from tp2d_mesh.testing.parity import TINY

SECONDS = 60  # for a type
CHUNK = 5  # tokens; 24 do not divide by it
LAST_DIGITS = 8
"""Units of rounding, relative to the largest logit."""
GRADIENTS = {torch.float64: 1e-11, torch.float32: 1e-4}
"""By the dtype of the logits: the most that a gradient may be off, relative to the largest of its parameter."""
CHANGED: Mapping[str, float] = {
    "final_logit_softcapping": 2.5,
    "logits_soft_cap": 2.5,
    "output_logit_soft_cap": 2.5,
    "logit_scale": 0.3,
    "logits_scaling": 3.0,
    "lm_head_multiplier": 0.7,
    "logits_mup_width_multiplier": 3.0,
    "dim_model_base": 8,
}
"""Numbers that some types have for their logits, in a range where they matter."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of a type, and whether `HEAD_FAMILIES` has the type that its model's configuration names."""

    family: str
    listed: bool
    equal: bool
    detail: str

    @property
    def cells(self) -> tuple[str, str, str]:
        return self.family, "in chunks" if self.equal else "**whole logits**", self.detail


def judge(family: str) -> Row:
    """The verdict on one type; in a process of its own."""
    from transformers import logging

    torch.set_num_threads(1)
    logging.set_verbosity(logging.CRITICAL)
    reasons = []
    for dtype, sizes in product((torch.float64, torch.float32), tiny_sizes(family)):
        try:
            with time_limit(SECONDS):
                return verdict(family, {**sizes, "dtype": dtype})
        except Exception as error:  # one verdict of many: whatever keeps a tiny model of the type from running
            reasons.append(first_line(error))
    listed = family in HEAD_FAMILIES
    return Row(family=family, listed=listed, equal=False, detail=f"no tiny model runs: {reasons[0]}")


def verdict(family: str, sizes: Mapping[str, Any]) -> Row:
    """The worst of all modes, rows and numbers."""
    logits = gradients = 0.0
    changed = {**sizes, **changes(family, sizes)}
    for settings in (sizes, changed) if changed != sizes else (sizes,):
        model = built(family, settings, "eager")
        for parameter in model.parameters():
            parameter.requires_grad_()
        listed = model.config.model_type in HEAD_FAMILIES
        row = partial(Row, family=family, listed=listed)
        head = head_of(model) if listed else plain_head(model)
        if head is None:
            return row(equal=False, detail="no base model, or no plain output embedding")
        for packed, training in product((False, True) if family in PACKED_FAMILIES else (False,), (False, True)):
            found = differences(model.train(training), head, packed=packed)
            if found is None:
                return row(equal=False, detail="something lies between")
            logits, gradients = max(logits, found[0]), max(gradients, found[1])
    how = f"`{head.base}`, `{head.output}`, {described(head)}; {logits:.0e}, {gradients:.0e}"
    return row(equal=True, detail=how)


def changes(family: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`CHANGED`, as far as the type's configuration or a part of it has these fields, on top of the sizes."""
    config = default_config(family)
    if config is None:
        return {}
    parts = {name: numbers(getattr(config, name, None)) for name in config.sub_configs}
    own = {name: {**sizes.get(name, {}), **some} for name, some in parts.items() if some}
    return {**numbers(config), **own}


def numbers(config: Any) -> dict[str, float]:
    if config is None:
        return {}
    return {field.name: CHANGED[field.name] for field in dataclasses.fields(config) if field.name in CHANGED}


def plain_head(model: Any) -> Head | None:
    """The head that a type outside the table would have if nothing lay between."""
    output, base = model.get_output_embeddings(), getattr(model, model.base_model_prefix, None)
    if not isinstance(output, torch.nn.Linear) or base is None:
        return None
    name = next(name for name, module in model.named_modules() if module is output)
    return Head(base=model.base_model_prefix, output=name, transform=UNCHANGED)


def described(head: Head) -> str:
    cap = "" if head.transform.soft_cap is None else f"soft cap {head.transform.soft_cap:g}"
    return cap or ("as they are" if head.transform.scale == 1 else f"scale {head.transform.scale:.3g}")


def differences(model: Any, head: Head, *, packed: bool) -> tuple[float, float] | None:
    """The logits' and the gradients' largest relative differences; None where either is beyond rounding."""
    batch = example(packed=packed)
    inputs = forward_inputs(batch, attention="eager")
    whole, base, output = model(**inputs).logits, model.get_submodule(head.base), model.get_submodule(head.output)
    hidden = base(**inputs).last_hidden_state
    logits = head.transform(output(hidden.to(output.weight.dtype)))
    if logits.shape != whole.shape:
        return None
    difference = float((logits - whole).detach().abs().max() / whole.detach().abs().max())
    precision = torch.promote_types(whole.dtype, torch.float32)
    if not difference <= LAST_DIGITS * torch.finfo(precision).eps:
        return None
    expected = gradients_of(model, cross_entropy(whole, batch["labels"]))
    chunks = head_loss_sum(
        hidden,
        output.weight,
        batch["labels"],
        rows=(0, output.weight.shape[0]),
        group=None,
        bias=output.bias,
        transform=head.transform,
        chunk_tokens=CHUNK,
    )
    off = worst(gradients_of(model, chunks), expected)
    return (difference, off) if off <= GRADIENTS[precision] else None


def example(*, packed: bool) -> dict[str, torch.Tensor]:
    """Two rows of 12 tokens, a quarter of them without a label; packed ones hold documents of 5 and 7."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, TINY["vocab_size"], (2, 12), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.25, IGNORED)
    positions = {"position_ids": torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)} if packed else {}
    return {"input_ids": ids, "labels": labels, **positions}


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    targets = shifted_labels(labels).flatten()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")


def gradients_of(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def worst(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference, relative to its parameter's largest entry, or to a 1000th of the model's largest."""
    least = 1e-3 * max(float(g.abs().max()) for g in expected)
    return max(
        float((f - e).abs().max()) / max(float(e.abs().max()), least) for f, e in zip(found, expected, strict=True)
    )


def disagreements(rows: Sequence[Row]) -> Iterator[str]:
    """Where the package's table says otherwise."""
    for row in rows:
        if row.equal != row.listed:
            yield f"{row.family} is {'' if row.equal else 'not '}exact in chunks: {row.detail}; HEAD_FAMILIES differs"


def page(rows: Sequence[Row]) -> Iterator[str]:
    named = ", ".join(f"{name} {number}" for name, number in versions("torch", "transformers").items())
    yield from (
        "# Whose loss is computed in chunks",
        "",
        f"`python benchmarks/heads.py --sweep`, {named}. Of {len(rows)} types {sum(row.equal for row in rows)} go from "
        "their base model to their logits by one output embedding and, some, a scale or a soft cap. The others keep "
        "whole logits.",
        "",
        "Behind the names of the base model and the output embedding: what happens to the logits, with the numbers "
        "that the check set, and the largest differences of the logits and of any gradient, relative to the largest.",
        "",
    )
    yield from table("model type | loss | how", (row.cells for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="*", metavar="TYPE", required=True, help="types; none: all, and a table")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "heads.md")
    arguments = parser.parse_args()
    rows = swept(judge, arguments.sweep or (), processes=arguments.processes)
    if not arguments.sweep:
        write_result(arguments.output, page(rows))
    wrong = list(disagreements(rows))
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
