"""What a run is: one frozen dataclass whose fields are the template's keys, the YAML keys and the command's options.

Defaults are the tutorials' (a pretrained model, fine-tuned). A `builtin:` model is trained from scratch in about a
minute and takes the `builtin` ones. The values that the packages take are made here, once, from the fields: `layout`,
`data` and `engine_spec`.
"""

import dataclasses
import pkgutil
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from tp2d_data import Corpus, DataSpec, LastBatch, LossOn, Mode, Packing, Stream, Task

from tp2d_train.engines import ENGINES
from tp2d_train.fields import checked, chosen, derived, option
from tp2d_train.names import meant
from tp2d_train.sizes import agreed, batch_sizes, mesh_sizes

if TYPE_CHECKING:
    from tp2d_mesh import EngineSpec, Layout

SCHEDULES = ("constant", "linear", "cosine")
LOG_LEVELS = ("debug", "info", "warning", "error")
PROGRESS = ("auto", "bar", "lines", "quiet")
RECOMPUTATION = ("none", "selective", "full")
PAIRS, CHATS = ("loss_on", "completion"), ("loss_on", "assistant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A checked configuration. `TrainConfig(**train_loop_config)` takes a template's dictionary as it is.

    `batch_size` is another name for `batch_size_per_gpu`. After construction every derived field has its value:
    `dp_size`, `num_workers`, `gradient_accumulation_steps`, `global_batch_size`, and those whose default depends on
    the model.

    Raises:
        ValueError: an unknown name (the closest known one is given), a value out of bounds, or sizes that do not fit.
    """

    model_name: str = option(
        "builtin:tiny", "hub name, local folder, builtin:tiny or builtin:small", fixed=True, starts="Model", common=True
    )
    tokenizer_name: str | None = option(None, "hub name or folder of the tokenizer, where not the model's", fixed=True)
    from_scratch: bool = option(False, "initialise the weights from the seed instead of reading them", fixed=True)
    trust_remote_code: bool = option(False, "run Python code that comes with the model or dataset")
    attn_implementation: str | None = option(None, "attention kernel: eager, sdpa, flash_attention_2, ...")
    dataset_name: tuple[str, ...] = option(
        ("builtin:stdlib",),
        "hub name, folder, file (txt, jsonl, json, parquet, arrow), builtin:stdlib; several: a,b",
        fixed=True,
        starts="Data",
        common=True,
    )
    dataset_weights: tuple[float, ...] | None = option(
        None, "of several datasets: shares of an epoch, such as 0.7,0.3", fixed=True
    )
    dataset_config: str | None = option(None, "configuration of a hub dataset, e.g. wikitext-2-raw-v1", fixed=True)
    split: str = option("train", "split of the dataset to train on", fixed=True)
    loss_on: LossOn = option(
        "all",
        "what the loss counts: all of a text, the completion of a prompt, what the assistant says in a chat",
        fixed=True,
        common=True,
    )
    text_field: str = option("text", "field of a record that holds the text", fixed=True)
    prompt_field: str = option("prompt", "loss_on completion: field of the prompt", fixed=True, needs=PAIRS)
    completion_field: str = option("completion", "loss_on completion: field of the completion", fixed=True, needs=PAIRS)
    messages_field: str = option("messages", "loss_on assistant: field of the messages", fixed=True, needs=CHATS)
    dataset_percentage: float = chosen(100.0, "percentage of the documents to use", builtin=50.0, above=0, most=100)
    holdout_percentage: float = option(
        1.0,
        "percentage held out to evaluate on, if there is no validation split; 0: no evaluation",
        fixed=True,
        least=0,
        most=50,
    )
    eval_dataset: tuple[str, ...] | None = option(
        None,
        "evaluate on this dataset in place of the held-out share or the validation split; several: a,b",
        fixed=True,
    )
    seq_length: int = chosen(512, "tokens in a row", builtin=64, least=2, common=True)
    packing: Mode = option(
        "best_fit",
        "how documents fill rows: best_fit (whole where they fit), concat (joined and cut), pad (one a row)",
        fixed=True,
    )
    respect_boundaries: bool = option(True, "packed documents see only themselves", fixed=True)
    append_eos: bool | None = option(
        None, "end every document with the end-of-text token; none: if boundaries are not respected", fixed=True
    )
    last_batch: LastBatch = option(
        "drop", "rows that do not fill a step: drop them, or pad with rows that count nothing", fixed=True
    )
    streaming: bool = option(
        False, "tokenise while training, for data larger than the disk; needs max_steps", fixed=True
    )
    block_tokens: int = option(
        1 << 24, "streaming: tokens that are tokenised and shuffled together", fixed=True, least=1
    )
    engine: str = option(
        "fsdp2", "what runs the parallelism", fixed=True, choices=tuple(ENGINES), starts="Mesh", common=True
    )
    tp_size: int = option(2, "ranks that share a layer (tensor parallel), inside a node", least=1, common=True)
    dp_size: int = derived(
        "ranks that share the batch (data parallel); default: num_workers / tp_size", least=1, common=True
    )
    num_workers: int = derived("all ranks; default: dp_size x tp_size, 4 if neither is given", least=1)
    zero_stage: int = option(1, "ZeRO stage of the engine autotp, 1 or 2; fsdp2 does not read it", fixed=True, least=0)
    deepspeed_config: str | None = option(None, "autotp: JSON file of further DeepSpeed settings")
    device: str = option("auto", "where the workers compute; auto: GPUs if enough", choices=("auto", "cpu", "cuda"))
    allow_cross_node_tp: bool = option(False, "let a tensor-parallel group span nodes (slow)")
    timeout_s: float = option(600.0, "seconds after which a collective operation that waits fails", above=0)
    batch_size_per_gpu: int = chosen(
        1,
        "rows of a micro-batch of one dp rank",
        builtin=8,
        least=1,
        fixed=False,
        aliases=("batch_size",),
        starts="Optimisation",
        common=True,
    )
    gradient_accumulation_steps: int = derived("micro-batches of an optimizer step; default 1", least=1)
    global_batch_size: int = derived(
        "rows of an optimizer step; sets the accumulation if given", fixed=True, least=1, common=True
    )
    optimizer: str = option("adamw", "AdamW, or plain SGD for parity checks", fixed=True, choices=("adamw", "sgd"))
    learning_rate: float = chosen(1e-5, "peak learning rate", builtin=3e-3, above=0, fixed=False, common=True)
    weight_decay: float = option(0.01, "decoupled weight decay", fixed=True, least=0)
    max_grad_norm: float | None = option(1.0, "clip the global gradient norm to this; none: off", above=0)
    lr_scheduler: str = chosen("constant", "shape after the warm-up", builtin="cosine", choices=SCHEDULES)
    warmup_steps: int = chosen(0, "steps of linear warm-up", builtin=20, least=0)
    precision: str = option(
        "auto",
        "auto (bf16 on GPUs, else fp32), bf16 (fp32 masters), bf16-pure, fp16, fp32",
        fixed=True,
        common=True,
        choices=("auto", "fp32", "bf16", "bf16-pure", "fp16"),
    )
    activation_checkpointing: str = option(
        "none",
        "what backward computes again: nothing, all but matrix products and attention, or everything",
        choices=RECOMPUTATION,
    )
    compile: bool | None = option(
        None, "compile every layer; none: on GPUs, for families shown to compile whole (fsdp2)"
    )
    gather_once: bool | None = option(
        None, "gather weights and reduce gradients once a step; none: where both fit whole (fsdp2)"
    )
    float8: bool = option(
        False, "matrix products of the layers in float8, row by row; not exact (fsdp2, torchao)", fixed=True
    )
    deterministic: bool = option(False, "kernels that repeat bit for bit on GPUs, which are slower; on CPUs all do")
    seed: int = option(42, "seed of weights, dropout and data order", fixed=True, least=0)
    num_epochs: int = option(1, "passes over the data", least=1, starts="Length", common=True)
    max_steps: int | None = option(None, "end after this many optimizer steps in all", least=1, common=True)
    debug_steps: int | None = option(None, "end each epoch after this many steps; 0: off", fixed=True, least=0)
    max_skipped_steps: int = option(
        3,
        "end the run after so many steps in a row whose gradient is not finite; each is skipped",
        least=1,
        starts="Failure",
    )
    on_spike: str = option("warn", "what a spike of the loss does", choices=("warn", "stop"))
    name: str | None = option(
        None, "name of the run; default: a new one. The same name resumes", starts="The run", common=True
    )
    storage_path: str = option("runs", "folder that holds the runs", common=True)
    resume: str = option("auto", "what the name of a run that has saved means", choices=("auto", "must", "never"))
    launcher: str = option("ray", "what starts the workers", choices=("ray", "local"))
    save_interval_steps: int | None = option(
        None, "save every so many steps, besides each epoch's end", least=1, common=True
    )
    save_each_epoch: bool = option(True, "save at the end of every epoch; the last one is saved in any case")
    keep_checkpoints: int | None = option(2, "newest checkpoints to keep, at least 2; none: all", least=2)
    eval_interval_steps: int | None = option(None, "evaluate every so many steps, besides each epoch's end", least=1)
    eval_batches: int | None = option(8, "global batches of an evaluation; none: all", least=1)
    log_interval: int | None = option(10, "steps between log lines; none or 0: off")
    log_level: str = option("info", "least important messages to show", choices=LOG_LEVELS)
    progress: str = option(
        "auto", "auto (a bar on a terminal, else lines), bar, lines, quiet (no line for a step)", choices=PROGRESS
    )
    profile: bool = option(False, "trace three steps of every rank, and say where their time goes")
    memory_snapshot: bool = option(False, "record what every rank's memory holds over three steps, GPUs only")
    max_failures: int = option(0, "times the workers are started again after a failure", least=0)
    runtime_env: dict | None = option(None, "Ray's runtime_env of the workers, as JSON")
    batch_size: dataclasses.InitVar[int | None] = None

    def __new__(cls, **named: object) -> Self:
        """Refuses unknown names before the generated `__init__` would, with the closest known one."""
        check_names(named)
        return super().__new__(cls)

    def __post_init__(self, batch_size: int | None) -> None:
        if isinstance(self.activation_checkpointing, bool):  # what it was once, in stored runs
            self._set("activation_checkpointing", "full" if self.activation_checkpointing else "none")
        if batch_size is not None:
            self._set("batch_size_per_gpu", agreed(self.batch_size_per_gpu, batch_size))
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None and "builtin" in field.metadata:
                self._set(field.name, field.metadata["builtin" if self._has_builtin(field.name) else "default"])
            self._set(field.name, checked(field, getattr(self, field.name)))
        dp, workers = mesh_sizes(tp=self.tp_size, dp=self.dp_size, workers=self.num_workers)
        self._set("dp_size", dp)
        self._set("num_workers", workers)
        steps, rows = batch_sizes(
            dp=dp,
            per_gpu=self.batch_size_per_gpu,
            steps=self.gradient_accumulation_steps,
            rows=self.global_batch_size,
        )
        self._set("gradient_accumulation_steps", steps)
        self._set("global_batch_size", rows)
        if self.streaming and self.max_steps is None:
            raise ValueError("streaming needs max_steps: nobody knows how long a stream's epoch is")

    def _has_builtin(self, name: str) -> bool:
        """Whether the `builtin` default of a field holds; one's own data are used whole, with any model."""
        return self.is_builtin and (name != "dataset_percentage" or self.dataset_name == ("builtin:stdlib",))

    @property
    def is_builtin(self) -> bool:
        """Whether the model is one of ours, which has no trained weights and so starts from the seed."""
        return str(self.model_name).startswith("builtin:")

    @cached_property
    def layout(self) -> "Layout":
        """The mesh: dp x tp ranks."""
        from tp2d_mesh import Layout  # late: it imports torch, and a wrong option is answered without

        return Layout(dp=self.dp_size, tp=self.tp_size)

    @cached_property
    def data(self) -> DataSpec:
        """What is trained on, as tp2d-data takes it."""
        shares = {"dataset_percentage": self.dataset_percentage, "holdout_percentage": self.holdout_percentage}
        return DataSpec(
            corpora=tuple(self._corpus(name, **shares) for name in self.dataset_name),
            eval_corpora=tuple(self._corpus(name) for name in self.eval_dataset or ()),
            weights=self.dataset_weights,
            task=Task(
                loss_on=self.loss_on,
                text_field=self.text_field,
                prompt_field=self.prompt_field,
                completion_field=self.completion_field,
                messages_field=self.messages_field,
            ),
            packing=Packing(
                mode=self.packing,
                seq_length=self.seq_length,
                respect_boundaries=self.respect_boundaries,
                append_eos=self.append_eos,
            ),
            stream=Stream(block_tokens=self.block_tokens) if self.streaming else None,
        )

    @cached_property
    def engine_spec(self) -> "EngineSpec":
        """What the engine takes: the options that have the names of its spec's fields."""
        spec = pkgutil.resolve_name(ENGINES[self.engine].spec)
        names = [field.name for field in dataclasses.fields(spec) if hasattr(self, field.name)]
        return spec(**{name: getattr(self, name) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, what `TrainConfig(**...)`, YAML and Ray's `train_loop_config` take."""
        return dataclasses.asdict(self)

    def _corpus(self, name: str, **shares: float) -> Corpus:
        config = self.dataset_config if name in self.dataset_name else None  # another dataset has others
        return Corpus(dataset_name=name, dataset_config=config, split=self.split, **shares)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def option_fields() -> tuple[dataclasses.Field, ...]:
    """The fields of `TrainConfig` in the order of their declaration."""
    return dataclasses.fields(TrainConfig)


def check_names(names: Iterable[str]) -> None:
    """Raises `ValueError` for a name that is no field of `TrainConfig`, naming the one that was meant."""
    known = [field.name for field in option_fields()]
    for name in names:
        if name not in (*known, "batch_size"):
            raise ValueError(f"unknown option {name}; {meant(name, known, see='tp2d train --help-all')}")
