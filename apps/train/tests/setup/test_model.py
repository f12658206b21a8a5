"""Models by name."""

import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tp2d_data import load_tokenizer
from tp2d_train.config import TrainConfig
from tp2d_train.setup.model import (
    BUILTIN_SIZES,
    ResolvedModel,
    build,
    builtin_config,
    check,
    check_weights,
    resolve_model,
)

from apps.train.tests.folders import save_config


def resolve(name: str | Path, *, need_weights: bool = True, **settings: Any) -> ResolvedModel:
    return resolve_model(TrainConfig(model_name=str(name), **settings), need_weights=need_weights)


@pytest.mark.parametrize("size", BUILTIN_SIZES)
def test_a_built_in_model_fits_its_tokenizer_and_every_mesh_of_four(size: str) -> None:
    model = resolve(f"builtin:{size}")
    assert model.weights is None
    assert model.config.vocab_size == len(load_tokenizer(model.tokenizer_name))
    assert model.config.num_attention_heads % 4 == model.config.num_key_value_heads % 4 == 0
    assert model.config.tie_word_embeddings


def test_an_unknown_built_in_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown model_name 'builtin:huge': choose builtin:tiny, builtin:small"):
        builtin_config("huge")


def test_a_folder_has_its_configuration_weights_and_tokenizer(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.parent)
    model = resolve("llama")
    assert model.config.num_key_value_heads == 2
    assert model.weights == llama
    assert load_tokenizer(model.tokenizer_name).eos_token_id is not None
    assert resolve("llama", from_scratch=True).weights is None


def test_rows_longer_than_the_models_positions_are_refused_by_the_driver_and_the_worker(llama: Path) -> None:
    config = TrainConfig(model_name=str(llama), seq_length=65)
    for look in (check, build):
        with pytest.raises(ValueError, match=r"seq_length 65 is longer than the 64 positions of .*llama: choose at"):
            look(config)
    assert build(TrainConfig(model_name=str(llama), seq_length=64)).weights == llama


def test_a_folder_without_weights_is_refused_unless_they_are_to_be_drawn(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "bare", model_type="llama")
    with pytest.raises(ValueError, match=r"bare has no model.safetensors: .* --from-scratch"):
        resolve(folder)
    with pytest.raises(ValueError, match=r"bare has no model.safetensors"):
        resolve(folder, need_weights=False)  # the driver knows it too
    assert resolve(folder, from_scratch=True).weights is None


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").touch()
    shards = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(ValueError, match=r"has no two.safetensors:"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./none", r"model_name './none' is a path that does not exist"),
        ("file", r"model_name 'file' is a file"),
        ("folder", r"model folder folder has no config.json"),
        ("a b", r"unknown model_name 'a b'"),
        ("a/b/c", r"unknown model_name 'a/b/c'"),
    ],
)
def test_a_name_that_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "odd", model_type="no-such-type")
    with pytest.raises(ValueError, match=r"the configuration of model .*odd cannot be read: .*no-such-type"):
        resolve(folder, from_scratch=True)


def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "remote", model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        resolve(folder, from_scratch=True)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A hub that hangs up on every caller, and its callers' ports; the cache is the folder `hub`."""
    from huggingface_hub import constants

    callers: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        thread = threading.Thread(target=_hang_up, args=(server, callers))
        thread.start()
        yield callers
        server.shutdown(socket.SHUT_RDWR)  # ends the wait for a caller
        thread.join()


def _hang_up(server: socket.socket, callers: list[int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, (_, port) = server.accept()
            callers.append(port)
            connection.close()


def test_a_hub_name_without_a_network_costs_one_request(hub: list[int]) -> None:
    with pytest.raises(ValueError, match=r"model_name 'org/model' is neither a local folder nor .* cannot be reached"):
        resolve("org/model", need_weights=False)
    assert len(hub) == 1


def test_a_hub_model_in_the_cache_needs_no_network(hub: list[int], llama: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--model"
    shutil.copytree(llama, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    model = resolve("org/model")
    assert model.weights is not None and (model.weights / "model.safetensors").exists()
    assert model.config.num_key_value_heads == 2
    assert not hub
