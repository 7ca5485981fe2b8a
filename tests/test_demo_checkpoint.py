"""The bundled checkpoint is what tools/make_demo.py writes."""

import base64
import json

import ml_dtypes
import numpy as np
import tiktoken

from tests.reference import random_checkpoint, read_checkpoint
from tools.make_demo import FOLDER, HERE, PIECES, SPECIALS, main


def test_the_maker_is_reproducible(tmp_path):
    main(tmp_path)
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert made == {file.name: file.read_bytes() for file in FOLDER.iterdir()}
    assert sum(map(len, made.values())) < 3_000_000


def test_vocabulary():
    lines = (FOLDER / "qwen.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    assert list(ranks.values()) == list(range(len(lines)))
    assert [ranks[bytes([b])] for b in (33, 161, 174, 0, 127, 173)] == [0, 94, 106, 188, 221, 255]

    encoding = tiktoken.Encoding("demo", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={})
    text = (HERE / "demo_text.txt").read_text("utf-8") + "🙂 unseen"
    ids = encoding.encode(text, disallowed_special=())
    assert encoding.decode(ids) == text
    assert len(ids) < len(text.encode()) / 3

    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["eos_token_id"] == generation["pad_token_id"] == len(ranks)
    config, _ = read_checkpoint(FOLDER)
    assert 0 <= config["vocab_size"] - len(ranks) - SPECIALS < 128


def test_tensors():
    config, tensors = read_checkpoint(FOLDER)
    wanted = random_checkpoint(config, seed=0)
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in wanted.items()}
    assert {v.dtype for v in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
