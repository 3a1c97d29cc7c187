"""Text that grows token by token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.testing.tiny import make_tiny_tokenizer
from swift_infer.engines.answer import Answer, Detokenizer, StopTexts

TOKENIZER = make_tiny_tokenizer()


def decode(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40))
def test_pieces_join_to_the_text_and_never_hold_half_a_character(text):
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]]
    assert "".join(pieces) + detokenizer.flush() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_character_cut_off_at_the_end_is_left_out():
    ids = TOKENIZER("a🐉", add_special_tokens=False)["input_ids"]
    answer = Answer(decode, stop_ids=[], stops=[], limit=len(ids) - 1)
    text = "".join(answer.push(token) for token in ids[:-1])
    assert (text, answer.finish_reason) == ("a", "length")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text("abc", max_size=4), max_size=8), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_stop_texts_cut_wherever_the_pieces_end(pieces, stops):
    whole = "".join(pieces)
    hits = [whole.find(stop) for stop in stops if stop in whole]
    finder, shown, stopped = StopTexts(stops), "", False
    for piece in pieces:
        text, stopped = finder.push(piece)
        shown += text
        if stopped:
            break
    if not stopped:
        shown += finder.flush()
    assert stopped == bool(hits)
    # A longer stop text that begins earlier may still be incomplete when a shorter one is met.
    assert whole.startswith(shown) and (shown == whole if not hits else not any(stop in shown for stop in stops))


@pytest.mark.parametrize(
    ("stop_ids", "limit", "pushed", "reason"),
    [([5], 10, [7, 5], "stop"), ([5], 2, [7, 8], "length"), ([5], 2, [7, 5], "stop"), ([], 9, [7], None)],
)
def test_reason_of_the_end(stop_ids, limit, pushed, reason):
    answer = Answer(decode, stop_ids=stop_ids, stops=[], limit=limit)
    for token in pushed:
        answer.push(token)
    assert answer.finish_reason == reason
    assert answer.token_ids == pushed


def test_abort_releases_what_was_held_back():
    answer = Answer(decode, stop_ids=[], stops=["bx"], limit=99)
    shown = "".join(answer.push(token) for token in TOKENIZER("ab", add_special_tokens=False)["input_ids"])
    assert shown == "a"
    assert answer.abort() == "b"
    assert (answer.text, answer.finish_reason, answer.abort()) == ("ab", "abort", "")
