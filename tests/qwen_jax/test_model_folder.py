"""What may be given as a model, and what is said where it may not."""

import warnings
from pathlib import Path

import pytest

from qwen_jax import bundled, model_folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def native(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    return folder


def test_a_native_folder(here: Path) -> None:
    native(here / "mine")
    assert model_folder.find("mine") == Path("mine")


def test_demo_is_the_bundled_model_whatever_lies_here(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "native_folder", lambda: Path("/cache/demo"))
    with warnings.catch_warnings(record=True) as told:
        assert model_folder.find("demo") == Path("/cache/demo")
        assert not told
    native(here / "demo")
    with pytest.warns(UserWarning, match=r"demo is the bundled model; give \./demo for the folder"):
        assert model_folder.find("demo") == Path("/cache/demo")
    assert model_folder.find("./demo") == Path("demo")


def test_a_hub_id_is_told_the_command(here: Path) -> None:
    command = "qwen-jax convert --hf Qwen/Qwen2.5-0.5B --out qwen2.5-0.5b and then give qwen2.5-"
    with pytest.raises(FileNotFoundError, match=command):
        model_folder.find("Qwen/Qwen2.5-0.5B")
    native(here / "qwen2.5-0.5b")
    with pytest.raises(FileNotFoundError, match=r"converted already: give qwen2\.5-0\.5b$"):
        model_folder.find("Qwen/Qwen2.5-0.5B")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_of_hugging_face_is_told_the_command(here: Path, file: str) -> None:
    (here / "My Model").mkdir()
    (here / "My Model" / file).touch()
    command = "convert --hf 'My Model' --out 'my model' and then give 'my model'$"
    with pytest.raises(ValueError, match=command):
        model_folder.find("My Model")
    (here / "My Model").rename(here / "mine")  # where its own name is the usual one
    with pytest.raises(ValueError, match="convert --hf mine --out mine-native and then give mine-"):
        model_folder.find("mine")


def test_a_name_that_is_not_there(here: Path) -> None:
    native(here / "qwen-7b-chat")
    for given, wanted in (("qwen-7b-caht", "qwen-7b-chat"), ("dmeo", "demo")):
        with pytest.raises(FileNotFoundError, match=f"no folder {given}; did you mean {wanted}?"):
            model_folder.find(given)
    with pytest.raises(FileNotFoundError, match="qwen-jax convert --hf MODEL --out other"):
        model_folder.find("other")


def test_default_out(here: Path) -> None:
    assert str(model_folder.default_out("Qwen/Qwen-14B-Chat")) == "qwen-14b-chat"
    assert str(model_folder.default_out("some/where/Qwen-7B/")) == "qwen-7b"
    assert str(model_folder.default_out(".")) == here.name.lower()
    assert str(model_folder.default_out("demo")) == "demo"
