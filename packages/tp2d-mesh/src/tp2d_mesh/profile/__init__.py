"""Where the time of a step goes, from a trace that `torch.profiler` has written (`export_chrome_trace`).

`kernels` knows the class of a kernel or operator by its name. `totals` adds up a step's work by class, for
`benchmarks/gpu.py`. `steps` and `times` lay it out in time, with the collectives by axis, for `tp2d train --profile`.
Nothing here imports torch.
"""

from tp2d_mesh.profile.events import DATA, STEP, WAIT
from tp2d_mesh.profile.kernels import CLASSES, kernel_class, short_name
from tp2d_mesh.profile.steps import Call, Named, Step, recorded_steps
from tp2d_mesh.profile.times import (
    HOST,
    LOADER,
    PEERS,
    ROWS,
    Exchange,
    StepTimes,
    collectives,
    step_times,
    transfer_times,
)
from tp2d_mesh.profile.totals import StepProfile, step_profile

__all__ = [
    "CLASSES",
    "DATA",
    "HOST",
    "LOADER",
    "PEERS",
    "ROWS",
    "STEP",
    "WAIT",
    "Call",
    "Exchange",
    "Named",
    "Step",
    "StepProfile",
    "StepTimes",
    "collectives",
    "kernel_class",
    "recorded_steps",
    "short_name",
    "step_profile",
    "step_times",
    "transfer_times",
]
