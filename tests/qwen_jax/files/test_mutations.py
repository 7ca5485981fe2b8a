"""Files that accidents changed: a line that names the file, or what was meant; never anything else.

`make mutations` tries many more than the suite does.
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import convert
from convert import huggingface
from qwen_jax.adapters import peft
from qwen_jax.bundled import CHECKPOINT
from qwen_jax.checkpoint import examine, read_defaults
from qwen_jax.config import Config
from qwen_jax.data.records import Records
from qwen_jax.files import strict_json
from qwen_jax.storage.native import by_piece, read_piece
from qwen_jax.text import chatml, vocabulary
from qwen_jax.text.tokenizer import Tokenizer
from tests.conftest import GOLDEN
from tests.mutations import of_bytes, of_json
from train.report import plot
from train.run import _expect_same_run
from train.settings import TrainConfig

COUNT = int(os.environ.get("QWEN_JAX_MUTATIONS", "60"))  # of each reader
TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- if loop.last and add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
{%- endfor %}"""
GENERATION: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "min_p": 0.1,
}
GENERATION |= {"eos_token_id": [1, 2], "stop_words_ids": [[3, 4]], "max_new_tokens": 9}
GENERATION |= {"repetition_penalty": 1.05, "num_beams": 1, "max_length": 99, "min_new_tokens": 2}
RUN = TrainConfig(model="demo", data=("chats.json",), out="")
CHAT = [{"role": "user", "content": "Hello <|im_end|>"}]
# keys that mean something with values of several types
OF_TYPES = {"eos_token_id", "target_modules", "chat_template", "merges", "init_lora_weights"}
OF_TYPES |= {"bos_token", "eos_token", "pad_token", "unk_token", "top_k", "min_p"}


class Reader:
    """read(folder): what is in these files, to be compared; `make` fills a folder with them.

    hashed: nothing that an accident changed may be believed, other values no more than other types.
    """

    def __init__(
        self,
        read: Callable[[Path], Any],
        make: Callable[[Path], object],
        *files: str,
        hashed: bool = False,
    ):
        self.read, self.make, self.files, self.hashed = read, make, files, hashed


def text_of(folder: Path) -> Any:
    found = vocabulary.read(folder)
    return found if found is None else (found, Tokenizer(found).encode("a b"))


def checkpoint(folder: Path) -> Any:
    found = huggingface.read(folder)
    shards = {name: (shard.tensors, shard.metadata) for name, shard in found.shards.items()}
    return found.config, found.packing, found.formats, shards


def native(folder: Path) -> Any:
    manifest, config, assets = examine(folder)
    pieces = by_piece(manifest.leaves)
    arrays = [read_piece(folder, name, pieces[name], manifest.pieces[name]) for name in pieces]
    bits = [array.tobytes() for piece in arrays for array in piece.values()]
    ids = assets.tokenizer and assets.tokenizer.encode("<|im_end|>", specials=True)
    return manifest, config, assets.defaults, ids, bits


def adapter(folder: Path) -> Any:
    found = peft.read(folder)
    parts = found.deltas.values()
    return found.settings, [(a.shape, b.shape) for a, b in parts], [*found.saved]


def data(folder: Path) -> Any:
    records = Records(folder / "chats.jsonl")
    records.problems.stop(f"{folder / 'chats.jsonl'}")
    found = []
    for number in range(len(records)):
        with records.problems.catch(records.where(number)):
            found.append(records[number])
    records.problems.stop("the data")
    return found


def run(folder: Path) -> Any:
    _expect_same_run(RUN, folder)
    return [record["step"] for record in plot.read_log(folder / "log.jsonl")]


def of_golden(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)


def with_chats(folder: Path) -> None:
    lines = [{"messages": [*CHAT, {"role": "assistant", "content": "Hi."}]}] * 3
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_run(folder: Path) -> None:
    (folder / "checkpoints" / "3").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(RUN.to_json()))
    lines = [{"step": step, "loss": 1.5, "held_out_loss": None} for step in (1, 2, 3)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_generation(folder: Path) -> None:
    shutil.copy(GOLDEN / "modern/qwen3/config.json", folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))


def with_v1(folder: Path) -> None:
    shutil.copy(CHECKPOINT / "qwen.tiktoken", folder)
    (folder / "extra.tiktoken").write_text("ZXh0cmFvcmRpbmFyeQ== 1266\n")


WEIGHTS = "model.safetensors"
CONFIG = lambda folder: Config.from_hf(strict_json.read(folder / "config.json"))
READERS = {
    "config of v1": Reader(CONFIG, of_golden("v1/longctx"), "config.json"),
    "config": Reader(CONFIG, of_golden("modern/qwen25_yarn"), "config.json"),
    "generation_config": Reader(read_defaults, with_generation, "generation_config.json"),
    "v1 vocabulary": Reader(text_of, with_v1, "qwen.tiktoken", "extra.tiktoken"),
    "checkpoint": Reader(
        checkpoint, of_golden("quant/gptq4"), "config.json", WEIGHTS, "quantize_config.json"
    ),
    "shards": Reader(
        checkpoint, of_golden("v1/base"), f"{WEIGHTS}.index.json", "generation_config.json"
    ),
    "native": Reader(
        native,
        lambda folder: shutil.copytree(
            convert.to_native("demo", folder / "native"), folder, dirs_exist_ok=True
        ),
        "manifest.json",
        "config.json",
        "tokenizer_config.json",
        "vocabulary.bin",
        "origin.json",
        "weights/blocks.1.safetensors",
        hashed=True,
    ),
    "adapter": Reader(
        adapter, of_golden("peft/lora"), "adapter_config.json", "adapter_model.safetensors"
    ),
    "data": Reader(data, with_chats, "chats.jsonl"),
    "run folder": Reader(run, with_run, "settings.json", "log.jsonl"),
}


@pytest.mark.parametrize("name", READERS)
def test_reader(name: str, tmp_path: Path) -> None:
    READERS[name].make(tmp_path)
    mutate(READERS[name], tmp_path)


def test_vocabulary(small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(small_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    named = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    mutate(Reader(text_of, lambda folder: None, *named), tmp_path)


def test_older_vocabulary(small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(small_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = config.pop("added_tokens_decoder")
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({token["content"]: int(id) for id, token in added.items()})
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").unlink()
    named = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json")
    mutate(Reader(text_of, lambda folder: None, *named), tmp_path)


def test_template(small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(small_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)

    def read(folder: Path) -> Any:
        tokenizer = Tokenizer.load(folder)
        assert tokenizer is not None
        return chatml.render(tokenizer, CHAT)

    mutate(Reader(read, lambda folder: None, "chat_template.jinja"), tmp_path, "chat template")


def mutate(reader: Reader, folder: Path, *words: str) -> None:
    """Each mutation is refused in words that name a file, or means what it says."""
    meant, chance = reader.read(folder), random.Random(repr(reader.files))
    for number in range(COUNT):
        file = folder / chance.choice(reader.files)
        whole = file.read_bytes()
        is_json = file.suffix == ".json" and number % 4 > 0
        path, new, content = list[Any](), None, b""
        if is_json:
            content, path, new = of_json(json.loads(whole), chance)
        else:
            content = of_bytes(whole, chance)
        file.write_bytes(content)
        said = f"{file.name} {path} {new!r:.80}" if is_json else f"{file.name} {content!r:.200}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = reader.read(folder)
        except (ValueError, OSError) as error:
            named = (*reader.files, *words, folder.name)
            if not any(word in str(error) for word in named) or len(str(error)) > 8000:
                pytest.fail(f"{said} is refused with {error}")
        except BaseException as error:
            pytest.fail(f"{said} raises {error!r}")
        else:
            another = not is_json or is_another(json.loads(whole), path, new)
            if found != meant and (reader.hashed or not another):
                pytest.fail(f"{said} is believed")
        file.write_bytes(whole)


def is_another(content: Any, path: list[Any], new: Any) -> bool:
    """Whether a value was left out, or took another of its type: that may mean something else."""
    old = content
    for step in path:
        old = old[step]
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (old, new))
    return (
        new is None or old is None or numbers or type(old) is type(new) or bool(OF_TYPES & {*path})
    )
