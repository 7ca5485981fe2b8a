import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen_jax.decoding import decode
from qwen_jax.decoding.completion import complete
from qwen_jax.decoding.flat_params import PART
from qwen_jax.decoding.pieces import rows_of, share
from qwen_jax.decoding.sampling import Sampling
from tests.convert.small import QWEN2, random_params


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.sampled_from([1, 4, 8]))
def test_full_calls_compute_every_token_once_and_no_row_of_nothing(
    lengths: list[int], rows: int
) -> None:
    calls = list(share(lengths, 32, rows, full=True))
    taken = [sum(rows_of(end - start, 32) for _, start, end in call) for call in calls]
    assert all(count <= rows and count & (count - 1) == 0 for count in taken)
    assert sum(taken) == sum(rows_of(length, 32) for length in lengths)
    for text, length in enumerate(lengths):
        pieces = [(start, end) for call in calls for one, start, end in call if one == text]
        assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
        assert pieces[-1][1] == length


def test_blocks_in_several_calls() -> None:
    """The last call has fewer; steps go on from what all of them stored."""
    params = random_params(QWEN2 | {"num_hidden_layers": PART + 2})
    prompt, greedy = [3, 1, 4, 1, 5, 9], Sampling(temperature=0, ignore_eos=True, logprobs=0)
    (answer,) = complete(params, [prompt], greedy, max_new_tokens=3, draft_tokens=0)
    logits = decode.score(params, np.array([prompt + answer.tokens]))[0, len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == answer.tokens
    wanted = jnp.take_along_axis(jax.nn.log_softmax(logits), np.array(answer.tokens)[:, None], 1)
    np.testing.assert_allclose(answer.logprobs, wanted[:, 0], rtol=1e-5)
