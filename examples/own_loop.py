"""A training loop of your own over the packages: data, mesh, engine and checkpoints, without the program or Ray.

    torchrun --nproc-per-node 4 examples/own_loop.py          # dp 2 x tp 2
    python examples/own_loop.py                               # one process

Run it again: it goes on after the step it saved last.
"""

import argparse
import os
from itertools import islice
from pathlib import Path

from tp2d_ckpt import Checkpointer, capture_rng, restore_rng
from tp2d_data import BUILTIN_VOCABULARY, create_dataloader
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import EngineSpec, Layout, build_mesh
from transformers import Qwen3Config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("runs/own-loop"))
    options = parser.parse_args()

    world = int(os.environ.get("WORLD_SIZE", "1"))
    mesh = build_mesh(Layout.from_world(world, tp_size=min(2, world)))
    loader = create_dataloader(
        "builtin:tiny",
        "builtin:stdlib",
        128,
        4,
        mesh.dp_rank,
        mesh.layout.dp,
        dataset_percentage=10,
        device=mesh.device,
    )
    config = Qwen3Config(
        vocab_size=BUILTIN_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    engine = FSDP2Engine(EngineSpec(learning_rate=3e-3), config=config, weights=None, mesh=mesh)
    checkpointer = Checkpointer(options.folder, mesh=mesh, keep=2, engine=engine.name)

    step = 0
    if info := checkpointer.latest():
        restored = checkpointer.load(info, engine.state())
        engine.load_extra_state(restored.state["engine"])
        loader.load_state_dict(restored.state["data"])
        if restored.rank_state:
            restore_rng(restored.rank_state["rng"], mesh.device)
        step = info.step

    loader.sampler.set_epoch(0)
    for batch in islice(loader, max(0, options.steps - step)):
        stats = engine.train_step([batch])
        step += 1
        if step % 10 == 0:
            if mesh.rank == 0:
                print(f"step {step}  loss {stats.loss:.3f}  {int(stats.tokens)} tokens", flush=True)
            state = {"data": loader.state_dict(), "engine": engine.extra_state()}
            own = {"rng": capture_rng(mesh.device)}
            checkpointer.save(step=step, tensors=engine.state(), state=state, rank_state=own)

    engine.close()
    mesh.close()


if __name__ == "__main__":
    main()
