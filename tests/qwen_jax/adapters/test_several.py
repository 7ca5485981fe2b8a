"""Several adapters beside one network: each row of a batch follows its own, or none."""

from typing import Any

import jax
import numpy as np
import pytest

from qwen_jax.adapters import attach
from qwen_jax.adapters.peft import Adapter
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.decoding import decode, prompts
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh, shardings
from tests.adapters import MODERN, merged, random_adapter
from tests.adapters import V1 as V1_NAMES
from tests.qwen_jax.adapters.test_attach import IDS, NETWORKS, SETTINGS, case
from tests.qwen_jax.networks import finish, prefill
from tests.reference import greedy, random_checkpoint


def several(name: str) -> tuple[Qwen, dict[str, Adapter]]:
    """A network and adapters for it, of different ranks, layers and scales."""
    _, tensors, params, _ = case(name)
    everything = V1_NAMES if name == "v1" else MODERN
    configs = [
        LoraConfig(4, 8.0, everything),
        LoraConfig(2, 3.0, everything[:1]),
        LoraConfig(5, 5.0, everything[1:], rslora=True),
    ]
    made = {str(n): random_adapter(tensors, config, n) for n, config in enumerate(configs)}
    return params, made


@pytest.mark.parametrize(("name", "sizes"), [("v1", {"data": 2, "fsdp": 1}), ("qwen2", None)])
def test_a_batch_of_several(name: str, sizes: dict[str, int] | None) -> None:
    """Each slot answers as the reference with its adapter alone, the bare one between them."""
    params, made = several(name)
    hf, tensors, *_ = case(name)
    alone = [tensors, *(merged(tensors, adapter) for adapter in made.values())]
    wanted = [greedy(hf, one, IDS, 8)[len(IDS) :] for one in alone]
    assert len({tuple(ids) for ids in wanted}) == len(wanted)
    if sizes:
        params = jax.device_put(params, shardings(params.config, make_mesh(**sizes)))
    params = attach.add_all(params, made)
    state, first = decode.start(params, 4, 64), {}
    for slot, number in enumerate([2, 0, 3, 1]):
        state, output = prefill(params, state, slot, IDS, new=8, adapter=number)
        first[slot] = output.tokens[0].tolist()
    state, tokens = finish(params, state, first)
    assert [tokens[slot] for slot in (1, 3, 0, 2)] == wanted


def test_judged_with_an_adapter() -> None:
    params, made = several("qwen2")
    together = attach.add_all(params, made)
    scores = []
    for network, number in [(together, 2), (attach.add(params, made["1"]), 0)]:
        state = decode.start(network, 1, 64)
        how: dict[str, Any] = {"start": 0, "prompt_length": len(IDS), "adapter": number}
        _, found = prompts.score_chunk(network, state, 0, IDS[:-1], IDS[1:], tile=16, rows=1, **how)
        scores.append(found.logprobs)
    one, other = scores
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_several_that_cannot_be() -> None:
    params, made = several("qwen2")
    whole = random_adapter(random_checkpoint(NETWORKS["qwen2"], seed=2), SETTINGS["qwen2"])
    with pytest.raises(ValueError, match=r"mine: it replaces head\.kernel as a whole"):
        attach.add_all(params, {"fine": made["1"], "mine": whole})
    _, others = several("v1")
    with pytest.raises(ValueError, match="mine: the adapter does not fit this network"):
        attach.add_all(params, {"fine": made["1"], "mine": others["1"]})
