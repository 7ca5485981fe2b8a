"""Vocabularies without ChatML's tokens, as the Qwens that DeepSeek distilled have them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Oracle

from qwen_jax import chat, generate, stream_chat
from qwen_jax.data.examples import encode
from qwen_jax.data.formats import Document
from qwen_jax.text import chatml
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.transcript import transcript
from tests.assets import read_tokenizer
from tests.qwen_jax.memorised_model import memorised_model

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
NAMES = {"<|endoftext|>": END, "<|im_start|>": BEGIN, "<|im_end|>": "<|EOT|>"}
NAMES |= {"<tool_call>": USER, "</tool_call>": ASSISTANT}
ASKED = [{"role": "user", "content": "a"}]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '<｜User｜>' + message.content }}{% elif message.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tokenizer with DeepSeek's names, and what lies beside it there."""
    made = tmp_path_factory.mktemp("distilled")
    content = json.loads((small_folder / "tokenizer.json").read_text("utf-8"))
    for token in content["added_tokens"]:
        token["content"] = NAMES.get(token["content"], token["content"])
    begin = next(t["id"] for t in content["added_tokens"] if t["content"] == BEGIN)
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BEGIN, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BEGIN: {"id": BEGIN, "ids": [begin], "tokens": [BEGIN]}},
    }  # fmt: skip
    (made / "tokenizer.json").write_text(json.dumps(content))
    named = {"bos_token": {"__type": "AddedToken", "content": BEGIN}, "eos_token": END}
    config = {"tokenizer_class": "LlamaTokenizerFast", "chat_template": TEMPLATE, **named}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="session")
def distilled(folder: Path) -> Tokenizer:
    return read_tokenizer(folder)


def test_a_text_begins_as_hugging_face_begins_it(folder: Path, distilled: Tokenizer) -> None:
    oracle = Oracle.from_file(str(folder / "tokenizer.json"))
    for text in ("The quick brown fox", "", f"a{USER}b\u0338"):
        assert distilled.encode_prompt(text) == oracle.encode(text).ids
    assert distilled.encode_prompt(BEGIN + "fox") == oracle.encode("fox").ids  # and once
    assert distilled.encode("fox") == oracle.encode("fox", add_special_tokens=False).ids


def test_the_setting_that_begins_texts(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    assert read_tokenizer(tmp_path).start == ()
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    assert read_tokenizer(tmp_path).start == (read_tokenizer(folder).specials[BEGIN],)


def test_it_chats_by_its_own_template_and_stops_at_its_eos(distilled: Tokenizer) -> None:
    said = f"<think>\nWe see the dog</think>quick brown fox{END}the"
    params = memorised_model(distilled, said, eos_token_id=distilled.specials[END])
    reply, history = chat(params, "Who?", max_new_tokens=64)
    assert reply.endswith("quick brown fox")
    *_, last = stream_chat(params, "Who?", max_new_tokens=64)
    assert (last.text.strip(), last.finish_reason) == (reply, "stop")
    assert chat(params, "And?", history, max_new_tokens=64)[0] == reply
    assert generate(params, "</think>", max_new_tokens=64) == "quick brown fox"
    assert chatml.stop_ids(distilled) == [distilled.specials[END]]


def test_its_answers_are_learnt_and_nothing_else(distilled: Tokenizer) -> None:
    turns = [("user", "a <｜Assistant｜>"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    parts = transcript(distilled, messages)
    ids = [id for _, part in parts for id in part]
    assert ids == chatml.render(distilled, messages, add_generation_prompt=False)
    answers = [distilled.decode(part) for who, part in parts if who == "answer"]
    assert answers == ["b", END, "d", END]
    assert {who for who, _ in parts} == {"text", "answer"}


def test_answers_that_cannot_be_told_apart(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    with pytest.raises(ValueError, match="answer 2 cannot be told apart"):
        transcript(read_tokenizer(tmp_path), [*ASKED, {"role": "assistant", "content": "b"}])


def test_documents_end_with_its_eos(distilled: Tokenizer) -> None:
    ids, _ = encode(Document("fox"), distilled)
    assert ids.tolist() == [*distilled.encode("fox"), distilled.specials[END]]
    names: Any = {"specials": {"a": 0}, "names": {}}
    bare = object.__new__(Tokenizer)
    vars(bare).update(names)
    with pytest.raises(ValueError, match=r"no <\|endoftext\|>, and its tokenizer_config"):
        _ = bare.end_of_text
