from hypothesis import given
from hypothesis import strategies as st

from qwen_jax.decoding.pieces import rows_of, share


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
