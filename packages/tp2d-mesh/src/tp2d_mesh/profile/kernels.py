"""The class of work of a kernel or operator, by its name.

It knows the names of cuBLAS, CUTLASS, flash attention, cuDNN, Inductor's Triton kernels, NCCL and ATen.
"""

import re

CLASSES = ("matrix products", "attention", "elementwise and other", "optimizer", "copies and casts", "communication")
"""Every class of work. The optimizer's has the gradient norm and clipping; loss, norms, embedding are elementwise."""

COMMUNICATION = CLASSES[-1]
_OTHER = CLASSES[2]
_MATRIX = r"gemm|gemv|nvjet|cutlass|cublas|splitk|matmul|^aten::(mm|addmm|bmm|baddbmm|linear|_scaled_mm)\b|^mkldnn"
_ATTENTION = r"flash|fmha|sdpa|attention|dotproduct|varlen|flex_"
_COPIES = r"memcpy|memset|copy|catarray|chunk_cat|^aten::(cat|clone|contiguous|to|fill_|zero_)\b"
# The first rule that finds its pattern decides. Flash attention's kernels have "cutlass" in their names, and foreach
# kernels of casts and copies share a prefix with the optimizer's, so the order matters.
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (r"nccl|gloo|nvshmem|symm_mem|c10d", COMMUNICATION),
        (r"^triton_tem_.*flex_attention", "attention"),
        (r"^triton_tem_", "matrix products"),
        (r"^triton_", _OTHER),  # Inductor names what it fused, a neighbouring product or attention too
        (_ATTENTION, "attention"),
        (r"foreach_copy|multi_tensor_apply.*copy|split_with_sizes_copy", "copies and casts"),
        (r"multi_tensor_apply|_foreach_|adam|sgd|optimizer|lpnorm|vector_norm|clip_grad", "optimizer"),
        (_MATRIX, "matrix products"),
        (_COPIES, "copies and casts"),
    )
)


def kernel_class(name: str) -> str:
    """The class of work of a kernel or operator by its name; one of `CLASSES`."""
    return next((found for pattern, found in _RULES if pattern.search(name)), _OTHER)


def short_name(name: str) -> str:
    """A kernel's name without its return type, template arguments and parameters."""
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain)[0].strip()


def is_attention(name: str) -> bool:
    """Whether this is a kernel or operator of attention; a node of autograd's graph that calls one is not."""
    return kernel_class(name) == "attention" and not name.startswith("autograd::") and not name.endswith("Backward0")
