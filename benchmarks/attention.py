"""Attention of packed rows by itself: transformers' SDPA with a mask of the documents, against our own function.

    python benchmarks/attention.py                                   # CPU, one thread, half a minute
    python benchmarks/attention.py --device cuda --dtype bfloat16 --rows 4 --heads 32 --kv-heads 8 --width 128

Forward and backward of one layer's attention on rows of equally long documents, the two in turn, the median of some
rounds each. On the CPU it is the process's own time, which a busy machine does not stretch much. The mask, which
transformers makes once for all layers of a micro-batch, is not in the time. Ours is what `tp2d_mesh.model_batch` gives
a model. The last line is a row of one text: no mask either way.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, machine, table, write_result
from tp2d_mesh.model.attention.documents import documents_of
from tp2d_mesh.model.attention.function import VARLEN, document_attention, kernel_for
from transformers import AttentionInterface

HEAD = "tokens of a row | of a document | mask, ms | ours, ms | ours / mask | largest difference"
SHAPES = ((2048, 128), (2048, 256), (4096, 512), (2048, 2048))
Attend = Callable[..., torch.Tensor]


class Module(torch.nn.Module):
    """What an attention function asks its module for."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "attention.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [measured(seq, length, options) for seq, length in SHAPES]
    where = torch.cuda.get_device_name() if options.device == "cuda" else "one thread, time of the process"
    given = f"{options.rows} row(s), {options.heads} heads, {options.kv_heads} of keys, {options.width} wide"
    about = [
        "# Attention of packed rows",
        "",
        f"`python benchmarks/attention.py`: forward and backward of one layer, {options.dtype}, {where}, {given}, "
        f"median of {options.rounds}.",
        f"{machine('torch', 'transformers')}.",
        "",
    ]
    write_result(options.output, [*about, *table(HEAD, lines)])


def measured(seq: int, length: int, options: argparse.Namespace) -> list[str]:
    """A line of the table, for rows of `seq` tokens in documents of `length`."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    heads = (options.heads, options.kv_heads, options.kv_heads)
    inputs = [torch.randn(options.rows, n, seq, options.width, device=device, dtype=dtype) for n in heads]
    inputs = [x.requires_grad_() for x in inputs]
    module = Module(options.heads // options.kv_heads)
    documents = documents_of(torch.arange(seq, device=device).remainder(length).expand(options.rows, -1))
    kernel, packed = kernel_for(device), length < seq
    longest = torch.empty(documents.longest, device=device) if kernel == VARLEN else None
    number = torch.arange(seq, device=device) // length
    mask = ((number[:, None] == number) & torch.ones(seq, seq, dtype=torch.bool, device=device).tril())[None, None]

    def masked() -> torch.Tensor:
        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, *inputs, mask if packed else None)[0]

    def ours() -> torch.Tensor:
        ends = {"document_ends": documents.ends, "longest_document": longest} if packed else {}
        return document_attention(module, *inputs, None, document_kernel=kernel, **ends)[0]

    difference = float((masked() - ours()).detach().abs().max())
    times: dict[Attend, list[float]] = {masked: [], ours: []}
    for _ in range(options.rounds + 1):
        for attend, taken in times.items():
            taken.append(seconds(attend, device))
    old, new = (statistics.median(taken[1:]) * 1e3 for taken in times.values())
    return [f"{seq:,}", f"{length:,}", f"{old:,.1f}", f"{new:,.1f}", f"{new / old:.2f}", f"{difference:.1e}"]


def seconds(attend: Attend, device: torch.device) -> float:
    """Of a forward and a backward."""
    if device.type == "cpu":
        start = time.process_time()
        attend().sum().backward()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    attend().sum().backward()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
