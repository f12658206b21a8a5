"""The engines there are. This table is the only place that knows them by name.

Each entry is text, `module:name` for `pkgutil.resolve_name`, so that a run imports its own engine only, when it needs
it, and a wrong option is answered without torch.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineKind:
    """Where an engine's package has what a run needs of it.

    Args:
        engine: the class; see `tp2d_train.contracts.Engine`.
        spec: what it takes besides the model and the mesh, a frozen dataclass. A field has the name of its option.
        check: refuses a spec, and a model without memory, before any worker starts.
        estimate: what a step of a model without memory needs: memory and collectives; None where it does not say.
    """

    engine: str
    spec: str
    check: str
    estimate: str | None = None


ENGINES = {
    "fsdp2": EngineKind(
        engine="tp2d_fsdp2:FSDP2Engine",
        spec="tp2d_mesh:EngineSpec",
        check="tp2d_fsdp2:check",
        estimate="tp2d_fsdp2:estimate",
    ),
    "autotp": EngineKind(engine="tp2d_autotp:AutoTPEngine", spec="tp2d_autotp:AutoTPSpec", check="tp2d_autotp:check"),
}
