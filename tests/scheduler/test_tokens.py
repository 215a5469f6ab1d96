from hypothesis import given
from hypothesis import strategies as st

from vllm.scheduler.tokens import Tokens

ENDS = st.none() | st.integers(-12, 12)


@given(
    prompt=st.lists(st.integers(0, 9), max_size=6),
    output=st.lists(st.integers(0, 9), max_size=6),
    at=st.builds(slice, ENDS, ENDS, st.none() | st.sampled_from([1, 2, -1])),
)
def test_tokens_read_like_one_list(prompt: list[int], output: list[int], at: slice) -> None:
    tokens, whole = Tokens(prompt), prompt + output
    tokens.output.extend(output)
    assert list(tokens[at]) == whole[at]
    assert list(tokens) == whole and len(tokens) == len(whole)
    assert [tokens[i] for i in range(-len(whole), len(whole))] == whole + whole
    assert tokens.whole() == whole
