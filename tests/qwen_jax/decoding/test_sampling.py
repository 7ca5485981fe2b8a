"""Settings that make no sense are refused, by name and all together."""

from typing import Any

import numpy as np
import pytest

from qwen_jax.decoding.sampling import Sampling
from tests.qwen_jax.networks import settings

NAN, HUGE = float("nan"), 10**400
REFUSED = [
    *[
        (name, bad)
        for name in ("temperature", "top_p", "min_p")
        for bad in (NAN, -0.1, True, HUGE, "1")
    ],
    *[("repetition_penalty", bad) for bad in (0, NAN, -1.0, 1e9, None)],
    *[(f"{name}_penalty", bad) for name in ("presence", "frequency") for bad in (NAN, 1e9, False)],
    *[(name, bad) for name in ("top_k", "min_tokens") for bad in (-1, 1.5, True, 2**31, NAN)],
    *[("top_p", bad) for bad in (0, 1.01)],
    *[("logprobs", bad) for bad in (True, -1, 21, 2.0, NAN)],
    *[
        ("logit_bias", bad)
        for bad in ({-1: 1.0}, {1: NAN}, {1: 1e9}, {True: 1.0}, {"1": 1.0}, None)
    ],
    ("logit_bias", dict.fromkeys(range(301), 1.0)),
    *[("stop", bad) for bad in ("text", ("",), (3,), None)],
    *[("stop_ids", bad) for bad in (((),), (3,), ((-1,),), ((True,),), ((1,) * 9,), None, ("ab",))],
    ("stop_ids", tuple((i,) for i in range(17))),
    ("stop_ids", (None,)),
    *[("ignore_eos", bad) for bad in (None, 1, "yes")],
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda x: str(x)[:20])
def test_impossible_values_name_their_field(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} (is|has)"):
        Sampling(**{name: value})


def test_all_impossible_values_at_once() -> None:
    with pytest.raises(ValueError, match=r"temperature.*top_k.*stop "):
        Sampling(temperature=-1, top_k=-1, stop=("",))


def test_lists_are_as_good_as_tuples() -> None:
    lists: Any = [[1, 2]]
    one, other = (settings(Sampling(stop_ids=ids)) for ids in (lists, ((1, 2),)))
    np.testing.assert_array_equal(one.stops, other.stops)


def test_too_many_stops_together() -> None:
    sampling = Sampling(stop_ids=tuple((i,) for i in range(12)))
    settings(sampling, eos=tuple((i,) for i in range(16)))  # the same ids count once
    with pytest.raises(ValueError, match="17 stop sequences"):
        settings(sampling, eos=tuple((i,) for i in range(17)))
