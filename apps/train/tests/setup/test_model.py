"""Models by name."""

import json
import time
from pathlib import Path

import pytest
from tp2d_data import load_tokenizer
from tp2d_train.models import BUILTIN_SIZES, builtin_config, check_weights, resolve_model

from apps.train.tests.folders import save_config, save_llama


@pytest.mark.parametrize("size", BUILTIN_SIZES)
def test_a_built_in_model_fits_its_tokenizer_and_every_mesh_of_four(size: str) -> None:
    model = resolve_model(f"builtin:{size}")
    assert model.weights is None
    assert model.config.vocab_size == len(load_tokenizer(model.tokenizer_name))
    assert model.config.num_attention_heads % 4 == model.config.num_key_value_heads % 4 == 0
    assert model.config.tie_word_embeddings


def test_an_unknown_built_in_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown model_name 'builtin:huge': choose builtin:tiny, builtin:small"):
        builtin_config("huge")


def test_a_folder_has_its_configuration_weights_and_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    model = resolve_model("llama")
    assert model.config.num_key_value_heads == 2
    assert model.weights == tmp_path / "llama"
    assert resolve_model("llama", from_scratch=True).weights is None


def test_a_folder_without_weights_is_refused_unless_they_are_to_be_drawn(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "bare", model_type="llama")
    with pytest.raises(ValueError, match=r"bare has no model.safetensors: .* --from-scratch"):
        resolve_model(str(folder))
    with pytest.raises(ValueError, match=r"bare has no model.safetensors"):
        resolve_model(str(folder), need_weights=False)  # the driver knows it too
    assert resolve_model(str(folder), from_scratch=True).weights is None


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
        resolve_model(name)


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "odd", model_type="no-such-type")
    with pytest.raises(ValueError, match=r"the configuration of model .*odd cannot be read: .*no-such-type"):
        resolve_model(str(folder), from_scratch=True)


def test_code_that_comes_with_a_model_does_not_run(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "remote", model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        resolve_model(str(folder), from_scratch=True)
    assert not (tmp_path / "ran").exists()


def test_a_hub_name_without_a_network_costs_one_short_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"model_name 'org/model' is neither a local folder nor .* cannot be reached"):
        resolve_model("org/model", need_weights=False)
    assert time.monotonic() - begin < 5


def test_a_hub_model_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--model"
    save_llama(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    model = resolve_model("org/model")
    assert model.weights is not None and (model.weights / "model.safetensors").exists()
    assert model.config.num_key_value_heads == 2
