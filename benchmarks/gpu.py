"""One GPU: the engine against the loops that people write today, on the same weights and rows, in one run.

    python benchmarks/gpu.py --output gpu.md                          # everything that fits: hours
    python benchmarks/gpu.py --shapes 8b-12 --documents 1024          # one model, one kind of rows: about 10 minutes
    python benchmarks/gpu.py --shapes 3b --only tp2d torchtitan       # loops whose names contain one of these
    python benchmarks/gpu.py --check                                  # parity in float64 on this device
    python benchmarks/gpu.py --tiny                                   # all of it on the CPU, small, in a minute

It needs torch, transformers and the wheels of tp2d-mesh and tp2d-fsdp2, and nothing of the network. Each loop runs in
a process of its own, one after the other. It takes `--warmup` steps, `--steps` timed ones and a few under the profiler;
all draw the same weights and take the same rows. Time is the device's, between the ends of two steps. A model whose
weights and optimizer alone exceed the device's memory is left out, and a loop that runs out of memory has a row
that says so. MFU counts forward and backward without recomputation, attention within documents only, against the
product measured here and against the data sheet.

Exits with 1 if a loop's numbers are too far from the plain loop's, or, on a GPU, if the best of tp2d is slower than
the best loop as torchtitan's or than 1.3 x the best plain loop. A loop that did not run fails `--tiny` only.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from gpu.check import parity_rows
from gpu.contenders import contenders
from gpu.machine import Machine, measured_machine
from gpu.measure import How, figures
from gpu.page import Page
from gpu.report import Result, Row
from gpu.rows import counts
from gpu.runs import in_process
from gpu.shapes import STATE_BYTES, TINY_WORKLOADS, WORKLOADS, Workload, parameter_total


def main() -> int:
    """Measures, or checks; writes the page after each loop, so that a run that is cut short leaves what it has."""
    options = arguments()
    device = "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"
    if device == "cpu" and not options.tiny:
        raise SystemExit("torch sees no GPU here: use --tiny to run all of it on the CPU.")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # of every loop: less is left unused
    page = Page(title=" ".join(["python benchmarks/gpu.py", *sys.argv[1:]]), output=options.output)
    if options.check or options.tiny:
        page.parity = parity_rows(device)
        page.write()
    if not options.check:
        measure_all(page, options, device)
    print("\n".join(page.lines()))
    return 1 if page.wrong() else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models in fp32 on the CPU, traced but not fused")
    parser.add_argument("--check", action="store_true", help="only parity in float64, on 1x1 and 1x2")
    parser.add_argument("--shapes", nargs="+", choices=sorted({one.shape for one in WORKLOADS}), help="default: all")
    parser.add_argument(
        "--documents", nargs="+", choices=list(dict.fromkeys(map(documents_word, WORKLOADS))), help="default: all"
    )
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="loops whose names contain one of these")
    parser.add_argument("--warmup", type=int, help="steps before the timed ones; default 5, tiny 2")
    parser.add_argument("--steps", type=int, help="timed steps; default 20, tiny 3")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one loop")
    parser.add_argument("--traces", type=Path, help="a folder that keeps the profiler's traces")
    parser.add_argument("--output", type=Path, help="the page to write; its figures go beside it as JSON")
    return parser.parse_args()


def documents_word(workload: Workload) -> str:
    """How the command line names the rows of a workload."""
    return "unpacked" if workload.documents is None else str(workload.documents)


def measure_all(page: Page, options: argparse.Namespace, device: str) -> None:
    """Every loop on every workload that was asked for and fits."""
    gpu = device == "cuda"
    how = how_to_measure(options, device)
    if options.traces is not None:
        options.traces.mkdir(parents=True, exist_ok=True)
    what = in_process(device_ceilings, device, gpu=gpu, timeout=options.timeout)
    if isinstance(what, str):
        raise SystemExit(f"the device could not be measured: {what}")
    page.machine, page.how = what, how
    for workload in chosen(options):
        needed = STATE_BYTES * parameter_total(workload.shape)
        if what.memory_bytes is not None and needed > what.memory_bytes:
            page.left_out.append(
                f"{workload.name}: its state is {needed / 1e9:.0f} GB and the device has {what.memory_bytes / 1e9:.0f}"
            )
            continue
        result = Result(workload=workload, counts=counts(how.batches(workload)), rows=[])
        page.results.append(result)
        for contender in contenders(workload, gpu=gpu):
            if options.only and not any(text in contender.name for text in options.only):
                continue
            print(f"{workload.name}: {contender.name}", file=sys.stderr, flush=True)
            found = in_process(figures, workload, contender, how, gpu=gpu, timeout=options.timeout)
            result.rows.append(Row(contender=contender, figures=found))
            page.write()


def how_to_measure(options: argparse.Namespace, device: str) -> How:
    """Lengths, precision and compiler by device."""
    gpu = device == "cuda"
    return How(
        device=device,
        half=gpu,
        backend="inductor" if gpu else "aot_eager",
        warmup=options.warmup or (5 if gpu else 2),
        steps=options.steps or (20 if gpu else 3),
        profiled=3 if gpu else 1,
        traces=options.traces,
    )


def device_ceilings(device: str) -> Machine:
    """What the device is and can do; for a process of its own, which leaves its memory free."""
    if device == "cuda":
        return measured_machine(torch.device("cuda", 0), dtype=torch.bfloat16, tiny=False)
    return measured_machine(torch.device("cpu"), dtype=torch.float32, tiny=True)


def chosen(options: argparse.Namespace) -> Sequence[Workload]:
    """The workloads that were asked for."""
    if options.tiny:
        return TINY_WORKLOADS
    return [
        one
        for one in WORKLOADS
        if one.shape in (options.shapes or [one.shape])
        and documents_word(one) in (options.documents or [documents_word(one)])
    ]


if __name__ == "__main__":
    sys.exit(main())
