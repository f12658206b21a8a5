"""Packed rows against their documents alone: the matrix over both engines, and a verdict for every model type.

    python benchmarks/parity_packed.py            # 4 families (and windows shorter than documents) x 1x1, 2x2 x engines
    python benchmarks/parity_packed.py --sweep    # a verdict per causal language model type, or for those named

For each row of the matrix: the worst max|difference| / max|gradient| of any parameter on any rank, the worst weight
after one SGD step and the relative error of the loss, of packed rows on the mesh against the sum over their documents,
each alone in one plain process. Engine fsdp2 in float64 (1e-10; Gemma computes its norms in float32 whatever it is
given: 1e-6), engine autotp in float32 (1e-5). Exits with 1 if a row is outside its bound.

The sweep runs one process in float64: eager (its softmax kept in float64 too) and sdpa are the column mask,
transformers' flash attention path, its kernels written out in plain torch, the column varlen, and our own attention the
column documents. There the rows are also taken as one text each and compared with sdpa, because no mask is made for
them either. Each family is also run with six layers, and where its configuration has them with windows or chunks
shorter than the documents, convolutions, ALiBi and scales that follow the position. `PACKED_FAMILIES`,
`VARLEN_FAMILIES` and `DOCUMENT_FAMILIES` are its exact rows.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tp2d_autotp.testing
import tp2d_fsdp2.testing
from parity import TINY_LIMIT, bound, first_line
from tp2d_autotp import AutoTPSpec
from tp2d_mesh import EngineSpec, ModelBatch, forward_inputs
from tp2d_mesh.model.attention.function import ATTENTION, register_attention
from tp2d_mesh.testing import reuse_ranks, run_on_mesh
from tp2d_mesh.testing.packed_parity import (
    documents_reference,
    flash_attention_in_torch,
    named_gradients,
    packed_batch,
)
from tp2d_mesh.testing.parity import TINY, Batch, Reference, tiny_model, worst_differences

MESHES = ((1, 1), (2, 2))
FAMILIES: tuple[tuple[str, dict], ...] = (
    ("llama", {}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("qwen3", {}),
    ("gemma3_text", {}),
    ("gemma3_text", {"sliding_window": 4}),
)
RATE = 0.1
SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": RATE, "max_grad_norm": None}
ENGINES = {
    "fsdp2": (tp2d_fsdp2.testing.run_engine, EngineSpec(precision="fp64", **SGD)),
    "autotp": (tp2d_autotp.testing.run_engine, AutoTPSpec(precision="fp32", **SGD)),
}
BATCH = packed_batch(vocab_size=TINY["vocab_size"])
SECONDS = 30  # for a column of the sweep
EXACT = 1e-6  # float64, with norms that compute in float32 whatever they are given; faults are above 1e-2
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1} | EXPERTS
SIZES: dict[str, dict] = {
    "afmoe": EXPERTS,
    "deepseek_v2": {**LATENT, **ROUTED},
    "deepseek_v3": {**LATENT, **ROUTED},
    "exaone_moe": EXPERTS,
    "glm4_moe": ROUTED,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "youtu": LATENT,
}
"""What makes a family tiny where `TINY` does not."""
UNREACHED = {
    "doge": "selects keys once a row is longer than keep_window_size",
    "minimax_m3_vl_text": "selects blocks of keys once a row is longer than some",
}
"""Families with a mechanism that no tiny row reaches; an exact verdict would not cover it."""


def matrix() -> Iterator[bool]:
    """Print a row per family, engine and mesh; yield whether it is within bounds."""
    print(
        "| family | engine | mesh (dp x tp) | accumulation | loss | gradient | weight |\n|---|---|---|---|---|---|---|"
    )
    for family, changes in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            config, reference = saved(family, Path(folder), **changes)
            for engine in ENGINES:
                limit = 1e-5 if engine == "autotp" else bound(family)
                for dp, tp in MESHES:
                    for accumulation in (1, 2):
                        where = {"dp": dp, "tp": tp, "accumulation": accumulation}
                        errors = mesh_errors(engine, config, Path(folder), reference, **where)
                        good = max(errors) < limit
                        name = family + (f" (window {config.sliding_window})" if window(config) else "")
                        numbers = " | ".join(f"{e:.1e}" for e in errors)
                        mark = "" if good else " **outside**"
                        print(f"| {name} | {engine} | {dp}x{tp} | {accumulation} | {numbers}{mark} |", flush=True)
                        yield good


def window(config: Any) -> bool:
    return bool(getattr(config, "sliding_window", None))


def saved(family: str, folder: Path, **changes: Any) -> tuple[Any, Reference]:
    """A saved tiny model, of weights that float32 can hold, and what its documents alone make of it."""
    model = tiny_model(family, dtype=torch.float64, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.float())
    model.save_pretrained(folder)
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    return model.config, documents_reference(model, [BATCH], optimizer=sgd)


def mesh_errors(
    engine: str, config: Any, folder: Path, reference: Reference, *, dp: int, tp: int, accumulation: int
) -> tuple[float, float, float]:
    """The relative error of the loss, and the worst of any gradient and any weight, of any rank."""
    run, spec = ENGINES[engine]
    runs = run_on_mesh(run, spec, config, folder, [BATCH], accumulation=accumulation, dp=dp, tp=tp)
    gradients = [worst_differences(reference.gradients, r.gradients, prefix="grad.") for r in runs]
    weights = [worst_differences(reference.weights, r.weights, prefix="model.") for r in runs]
    loss = max(abs(r.losses[0] / reference.losses[0] - 1) for r in runs)
    return loss, max(max(g.values()) for g in gradients), max(max(w.values()) for w in weights)


def sweep(families: Sequence[str]) -> Iterator[bool]:
    """Print a verdict per model type; without names, for all that transformers maps to a causal language model."""
    from transformers import logging
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    logging.set_verbosity(logging.CRITICAL)
    register_attention()
    print("| model type | mask (eager, sdpa) | varlen (flash attention) | documents (ours) |\n|---|---|---|---|")
    for family in families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        if family in UNREACHED:
            print(f"| {family} | not shown: {UNREACHED[family]} | | |", flush=True)
            continue
        try:
            settings = variants(family)
        except Exception as error:  # one verdict of many: whatever keeps a tiny model of the family from being built
            print(f"| {family} | no tiny model: {first_line(error)} | | |", flush=True)
            continue
        with wide_softmax(), time_limit():
            mask = verdict(family, settings, ("eager", "sdpa"))
        with flash_attention_in_torch(), wide_softmax(), time_limit():
            varlen = verdict(family, settings, ("flash_attention_2",))
        with wide_softmax(), time_limit():
            documents = verdict(family, settings, (ATTENTION,))
        print(f"| {family} | {mask} | {varlen} | {documents} |", flush=True)
        yield True


@contextmanager
def wide_softmax() -> Iterator[None]:
    """Within the block, a softmax of float64 stays so: eager attention asks for float32, whose noise hides errors."""
    softmax = torch.nn.functional.softmax

    def wide(x: torch.Tensor, *args: Any, dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
        return softmax(x, *args, dtype=None if x.dtype == torch.float64 else dtype, **options)

    torch.nn.functional.softmax = wide
    try:
        yield
    finally:
        torch.nn.functional.softmax = softmax


@contextmanager
def time_limit(seconds: int = SECONDS) -> Iterator[None]:
    """Within the block, a TimeoutError after so many seconds of this process's own time."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def variants(family: str) -> list[dict]:
    """The configurations a family is checked in: as it comes, and with what may reach across documents turned on."""
    sizes = SIZES.get(family, {})
    with torch.device("meta"):
        model = tiny_model(family, dtype=torch.float64, **sizes)
    size = sum(p.numel() for p in model.parameters())
    if size > TINY_LIMIT:
        raise ValueError(f"{size:,} parameters at the tiny sizes, which this family's configuration does not all read")
    changes = [{}, {"num_hidden_layers": 6, "layer_types": None}, *reaches(model.config)]
    return [{**sizes, **change} for change in changes]


def reaches(config: Any) -> Iterator[dict]:
    """What a configuration has that looks further than one document, at sizes that these documents exceed."""
    if hasattr(config, "sliding_window"):
        yield {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
        if getattr(config, "layer_types", None):
            layers = ["sliding_attention", "full_attention"]
            yield {"sliding_window": 4, "use_sliding_window": True, "layer_types": layers}
    if hasattr(config, "attention_chunk_size"):
        yield {"attention_chunk_size": 4}
    if hasattr(config, "floor_scale"):
        yield {"num_hidden_layers": 6, "floor_scale": 4}
    if hasattr(config, "conv_L_cache"):
        yield {"layer_types": ["conv", "full_attention"]}
    if hasattr(config, "alibi"):
        yield {"alibi": True}


def verdict(family: str, settings: Sequence[dict], attentions: Sequence[str]) -> str:
    """`exact` with the worst error of every setting and attention, `wrong` at the first, or why it does not run."""
    worst = -1.0
    for changes, attention in product(settings, attentions):
        try:
            error = document_error(family, changes, attention)
        except Exception as why:  # one verdict of many
            return f"fails ({attention}): {first_line(why)}"
        worst = worst if error is None else max(worst, error)
        if not worst < EXACT:
            return f"**wrong** {worst:.1e}"
    return "not supported" if worst < 0 else f"exact {worst:.1e}"


def document_error(family: str, changes: dict, attention: str) -> float | None:
    """The worst relative error of the loss or any gradient; None where the family does not support the attention."""
    model = without_noise(tiny_model(family, dtype=torch.float64, **changes))
    if not supports(model, attention):
        return None
    state = {n: t.clone() for n, t in model.state_dict().items()}
    plain = "sdpa" if supports(model, "sdpa") else "eager"
    model.config._attn_implementation = plain
    reference = documents_reference(model, [BATCH], optimizer=torch.optim.SGD(model.parameters(), lr=RATE))
    model.load_state_dict(state)
    expected = (reference.losses[0], reference.gradients)
    error = worst_error(expected, loss_and_gradients(model, BATCH, attention))
    if attention != ATTENTION:
        return error
    texts = {name: BATCH[name] for name in ("input_ids", "labels")}
    expected = loss_and_gradients(model, texts, plain)
    return max(error, worst_error(expected, loss_and_gradients(model, texts, attention)))


Result = tuple[float, dict[str, torch.Tensor]]


def loss_and_gradients(model: Any, batch: Batch, attention: str) -> Result:
    model.zero_grad()
    model.config._attn_implementation = attention
    rows = ModelBatch(labels=batch["labels"], inputs=forward_inputs(batch, attention=attention))
    logits, labels = rows.logits(model)[:, :-1], batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return float(loss.detach()), named_gradients(model)


def worst_error(expected: Result, found: Result) -> float:
    """Of the loss or any gradient, relative to the gradient's largest."""
    errors = [abs(found[0] / expected[0] - 1)]
    for name, gradient in expected[1].items():
        scale = gradient.abs().max().clamp_min(torch.finfo(gradient.dtype).tiny)
        errors.append(float((found[1][name] - gradient).abs().max() / scale))
    return max(errors)


def supports(model: Any, attention: str) -> bool:
    if attention == "eager":
        return True
    flag = "flash_attn" if "flash" in attention else "attention_backend" if attention == ATTENTION else attention
    return bool(getattr(model, f"_supports_{flag}", False))


def without_noise(model: Any) -> Any:
    """The model without dropout and jitter of any kind, and with experts that can compute in float64."""
    model.config._experts_implementation = "eager"  # the grouped kernel cannot; an expert sees one token at a time
    for module in model.modules():
        noises = [n for n, v in vars(module).items() if isinstance(v, float) and ("drop" in n or "jitter" in n)]
        for name in noises:
            setattr(module, name, 0.0)
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="*", metavar="TYPE", help="a verdict per model type; without names, for all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with reuse_ranks():
        results = list(matrix() if arguments.sweep is None else sweep(arguments.sweep))
    sys.exit(0 if all(results) else 1)
