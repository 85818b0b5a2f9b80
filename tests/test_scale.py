"""The scale, the tokens that write it, and where they stand in a row."""

import itertools
import math
import re

import numpy as np
import pytest
from tiny import FAMILIES, PREFIX, make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tract_trainer.errors import InputError
from tract_trainer.scale import FoundScore, ScoreScale, ScoreTokens

FIVE = ScoreScale.integers(1, 5)
PREFIXES = (PREFIX, "[RESULT] ", "Score: ")
LEFT_CONTEXTS = (".", "\n", " ", "")


# ScoreScale


def test_an_integer_scale_writes_each_number_and_stands_for_it():
    scale = ScoreScale.integers(0, 3)
    assert scale.labels == ("0", "1", "2", "3")
    assert scale.values == (0.0, 1.0, 2.0, 3.0)
    assert (scale.low, scale.high) == (0.0, 3.0)


def test_labels_that_are_numbers_need_no_values():
    assert ScoreScale(["-1", "0.5", "10"]).values == (-1.0, 0.5, 10.0)


def test_labels_that_yaml_reads_as_integers_become_text():
    assert ScoreScale([1, 2, 3]) == ScoreScale.integers(1, 3)


def test_letters_stand_for_the_values_given():
    scale = ScoreScale(["A", "B", "C"], [1.0, 0.5, 0.0])
    assert [scale.value(label) for label in "ABC"] == [1.0, 0.5, 0.0]
    assert (scale.low, scale.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("score", "label"), [(1.0, "1"), (2.4, "2"), (2.6, "3"), (3.6666667, "4"), (-9.0, "1"), (9.0, "5"), (2.5, "2")]
)
def test_the_nearest_label_is_nearest_and_of_two_the_first(score, label):
    assert FIVE.nearest_label(score) == label


def test_nearness_goes_by_value_not_by_place_in_the_scale():
    uneven = ScoreScale(["low", "mid", "top"], [0, 1, 10])
    assert uneven.nearest_label(5.4) == "mid"  # |5.4 - 1| = 4.4 < |5.4 - 10| = 4.6
    assert uneven.nearest_label(5.6) == "top"
    assert ScoreScale(["A", "B"], [1, 0]).nearest_label(0.5) == "A"  # the first of the scale, not the lowest


def test_both_neighbours_write_a_score_half_way_between_them():
    assert [label for label in FIVE.labels if FIVE.writes(label, 2.5)] == ["2", "3"]
    assert [label for label in FIVE.labels if FIVE.writes(label, 3.6666667)] == ["4"]
    assert [label for label in FIVE.labels if FIVE.writes(label, 3)] == ["3"]


def test_a_half_way_score_that_went_through_float32_still_has_both_neighbours():
    scale = ScoreScale(["a", "b"], [0.1, 0.2])
    assert scale.writes("a", 0.15000000596046448)  # np.float32(0.15) is above 0.15
    assert scale.writes("b", 0.15000000596046448)


@pytest.mark.parametrize("values", [[0.2, 0.4, 0.6, 0.8], [-0.7, 0.1], [99.1, 99.7]])
def test_the_ends_of_a_scale_that_went_through_float32_are_on_it(values):
    scale = ScoreScale("ABCD"[: len(values)], values)
    ends = [float(np.float32(scale.low)), float(np.float32(scale.high))]
    assert not scale.low <= ends[0] or not ends[1] <= scale.high  # float32(0.8) is 0.800000011920929
    assert all(map(scale.covers, [*values, *ends]))
    assert not any(map(scale.covers, [scale.low - 0.01, scale.high + 0.01, math.nan, math.inf, -math.inf]))


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        (["1"], None, r"^A scale needs at least two labels, got \['1'\]\.$"),
        (
            ["A", "B"],
            None,
            r"^The labels \['A', 'B'\] are not all numbers, so their values must be given: "
            r"score_values=\[1, 2\], for example\.$",
        ),
        (
            ["A", "B"],
            [1],
            r"^Expected one value per label: 2 labels, but 1 values\. "
            r"Give score_values=2 numbers, in the order of score_labels\.$",
        ),
        (["1", "1"], None, r"^The labels of a scale must differ from each other, got \['1', '1'\]\.$"),
        (["A", "B"], [2, 2], r"^The values of a scale must differ from each other, got \[2\.0, 2\.0\]\.$"),
        (["1", "inf"], None, r"^The values of a scale must be finite numbers, got \[1\.0, inf\]\.$"),
        (["A", "B"], [1, math.nan], r"^The values of a scale must be finite numbers, got \[1\.0, nan\]\.$"),
    ],
)
def test_what_is_not_a_scale_is_refused(labels, values, message):
    with pytest.raises(ValueError, match=message):
        ScoreScale(labels, values)


# ScoreTokens.resolve


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_token_of_each_label_ends_the_tokenised_prefix_and_label(family, prefix):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, prefix, tokenizer)
    for label, token in zip(FIVE.labels, tokens.ids, strict=True):
        assert tokenizer(prefix + label, add_special_tokens=False)["input_ids"][-1] == token
        assert tokenizer.decode([token]).strip() == label
    assert len(set(tokens.ids)) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_only_gpt2_merges_the_space_into_the_digit(family):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, PREFIX, tokenizer)
    written = tokenizer.convert_ids_to_tokens(list(tokens.ids))
    assert written == ([f"Ġ{i}" for i in range(1, 6)] if family == "gpt2" else list("12345"))
    if family == "gpt2":  # the trap: alone, "5" is another token
        assert tokenizer("5", add_special_tokens=False)["input_ids"] != [tokens.ids[-1]]


@pytest.mark.parametrize("family", ["qwen", "mistral", "newline"])
def test_a_label_of_two_tokens_is_a_path_of_the_trie(family):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(ScoreScale.integers(1, 10), PREFIX, tokenizer)
    one, zero = tokenizer.convert_tokens_to_ids(["1", "0"])
    assert tokens.paths[0] == (one,) and tokens.paths[9] == (one, zero)
    assert tokens.nodes == ((), (one,)) and tokens.children((one,)) == [zero]
    assert len(tokens.children(())) == 9 and len(tokens.ids) == 10


@pytest.mark.parametrize("labels", [["10", "11"], ["10", "20"], ["1", "10", "100"]])
def test_digits_that_labels_share_belong_to_the_label_and_not_to_the_prefix(labels):
    tokenizer = make_tokenizer("qwen")
    tokens = ScoreTokens.resolve(ScoreScale(labels), PREFIX, tokenizer)
    assert ["".join(tokenizer.convert_ids_to_tokens(list(path))) for path in tokens.paths] == labels


@pytest.mark.parametrize("family", ["llama3", "gpt2"])
def test_ten_is_fine_where_it_is_one_token(family):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(ScoreScale.integers(1, 10), PREFIX, tokenizer)
    assert tokenizer.decode([tokens.ids[-1]]).strip() == "10"
    ids = tokenizer(f"Good. {PREFIX}10")["input_ids"]
    assert tokens.find(ids) == FoundScore(len(ids) - 1, "10", len(ids))
    ids = tokenizer(f"Good. {PREFIX}1")["input_ids"]
    assert tokens.find(ids) == FoundScore(len(ids) - 1, "1", len(ids))


def test_letters_are_one_token_each_with_the_space_before_them():
    tokenizer = make_tokenizer("qwen")
    tokens = ScoreTokens.resolve(ScoreScale(list("ABCDE"), range(1, 6)), PREFIX, tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(tokens.ids)) == ["ĠA", "ĠB", "ĠC", "ĠD", "ĠE"]
    ids = tokenizer(f"A B C. {PREFIX}D")["input_ids"]
    assert tokens.find(ids) == FoundScore(len(ids) - 1, "D", len(ids))


def test_an_empty_prefix_is_refused():
    with pytest.raises(ValueError, match=r"^score_prefix is empty, .* e\.g\. score_prefix='Score: '\.$"):
        ScoreTokens.resolve(FIVE, "", make_tokenizer())


def test_labels_that_the_tokenizer_does_not_know_are_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "Score": 1, ":": 2, "1": 3, "2": 4}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert ScoreTokens.resolve(ScoreScale.integers(1, 2), "Score : ", tokenizer).ids == (3, 4)
    kept = r"^This tokenizer does not keep the prefix: of 'Score: 1' it makes 'Score : 1'\. Set score_prefix to text"
    with pytest.raises(ValueError, match=kept):
        ScoreTokens.resolve(ScoreScale.integers(1, 2), "Score: ", tokenizer)
    with pytest.raises(ValueError, match=r"^score 'B' is written as '<unk>' in this tokenizer after 'Score: '"):
        ScoreTokens.resolve(ScoreScale(["1", "B"], [0, 1]), "Score: ", tokenizer)


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "score": 1, ":": 2, "a": 3}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(ValueError, match=r"^(score 'A' is written as 'a'|This tokenizer writes two of the labels)"):
        ScoreTokens.resolve(ScoreScale(["a", "A"], [0, 1]), "Score: ", tokenizer)


# ScoreTokens.find


@pytest.mark.parametrize(("prefix", "left"), list(itertools.product(PREFIXES, LEFT_CONTEXTS)))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_found_after_digits_and_an_earlier_closing_phrase(family, prefix, left):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, prefix, tokenizer)
    rationale = f"It names 3 of 12 facts. {prefix}2 at first sight, but 4 5{left}" if left else ""
    for label, after in itertools.product("15", ("", tokenizer.eos_token, "\n", ". That is all.\nNo 3 of 4")):
        ids = tokenizer(f"{rationale}{prefix}{label}{after}", add_special_tokens=False)["input_ids"]
        found = tokens.find(ids)
        assert found is not None and found.label == label
        assert ids[found.position] == tokens.ids[FIVE.labels.index(label)]
        whole = tokenizer.decode(ids[: found.position + 1], clean_up_tokenization_spaces=False)
        assert whole == f"{rationale}{prefix}{label}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_found_inside_a_chat_template_with_its_tokens_after_the_turn(family):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, PREFIX, tokenizer)
    messages = [{"role": "user", "content": "Rate."}, {"role": "assistant", "content": f"2 3.\n{PREFIX}4"}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    found = tokens.find(ids)
    assert found is not None and found.label == "4"
    assert tokenizer.decode(ids[found.position + 1 :]) == ("<|im_end|>\n" if family == "newline" else "<|im_end|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompts_closing_phrase_is_not_the_score(family):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, PREFIX, tokenizer)
    prompt = tokenizer(f"An example: {PREFIX}2.\n", add_special_tokens=False)["input_ids"]
    answer = tokenizer(f"Clear. {PREFIX}5", add_special_tokens=False)["input_ids"]
    nothing = tokenizer("Clear, 5 of 5", add_special_tokens=False)["input_ids"]
    masked = [-100] * len(prompt)
    assert tokens.find(prompt + answer, masked + answer) == FoundScore(
        len(prompt + answer) - 1, "5", len(prompt + answer)
    )
    assert tokens.find(prompt + nothing, masked + nothing) is None
    assert tokens.find(prompt + nothing) is not None  # it is the mask that hides it


@pytest.mark.parametrize("text", ["", "5", "The answer is 5", PREFIX, PREFIX + "6", PREFIX + "good", "score is 3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_without_prefix_and_label_holds_no_score(family, text):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, PREFIX, tokenizer)
    assert tokens.find(tokenizer(text, add_special_tokens=False)["input_ids"]) is None


@pytest.mark.parametrize("number", ["10", "45", "4.5", "3,7", "2nd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_digit_of_another_number_is_not_the_score(family, number):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, PREFIX, tokenizer)
    assert tokens.find(tokenizer(f"Clear. {PREFIX}{number}", add_special_tokens=False)["input_ids"]) is None


@pytest.mark.parametrize("after", ["/5", ".", ", 3 at worst", " 3", ". 3", " out of 5", "**"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_label_may_be_followed_by_anything_that_ends_it(family, after):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, PREFIX, tokenizer)
    found = tokens.find(tokenizer(f"Clear. {PREFIX}4{after}", add_special_tokens=False)["input_ids"])
    assert found is not None and found.label == "4"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_multilingual_rationale_cut_inside_a_character_hides_nothing(family):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(FIVE, "Score: ", tokenizer)
    ids = tokenizer("評価は良い。それは🙂🙂🙂Score: 3", add_special_tokens=False)["input_ids"]
    assert tokens.find(ids) == FoundScore(len(ids) - 1, "3", len(ids))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3-4", None),
        ("3 - 4", None),
        ("3 or 4", None),
        ("4½", None),
        ("2 1/2", None),
        ("4/10", None),
        ("4/5", "4"),
        ("4 / 5", "4"),
        ("4.5", None),
        ("4. It is right.", "4"),
        ("4 out of 5", "4"),
        ("4, since it is right", "4"),
        ("4 - good", "4"),
    ],
)
def test_a_label_that_goes_on_is_no_label(text, expected):
    tokenizer = make_tokenizer("qwen")
    found = ScoreTokens.resolve(ScoreScale.integers(1, 5), PREFIX, tokenizer).find(
        tokenizer(PREFIX + text)["input_ids"]
    )
    assert (None if found is None else found.label) == expected


@pytest.mark.parametrize(("text", "expected"), [("B+", None), ("B-", None), ("Aérien", None), ("B.", "B"), ("A", "A")])
def test_a_letter_that_goes_on_is_no_label(text, expected):
    tokenizer = make_tokenizer("qwen")
    tokens = ScoreTokens.resolve(ScoreScale(list("ABCDE"), [1, 2, 3, 4, 5]), PREFIX, tokenizer)
    found = tokens.find(tokenizer(PREFIX + text)["input_ids"])
    assert (None if found is None else found.label) == expected


def merging(text):
    """A tokenizer that has `text` as one token."""
    tokenizer = make_tokenizer("qwen")
    tokenizer.add_tokens([text])
    return tokenizer


def test_a_label_that_takes_the_end_of_the_prefix_has_it_on_its_path():
    tokenizer = merging(">A")
    tokens = ScoreTokens.resolve(ScoreScale(list("ABC"), [1, 2, 3]), "<score>", tokenizer)
    assert [tokenizer.decode(path) for path in tokens.paths] == [">A", ">B", ">C"]
    assert list(map(len, tokens.paths)) == [1, 2, 2]
    for label in "AB":
        ids = tokenizer(f"Clear. <score>{label}</score>", add_special_tokens=False)["input_ids"]
        found = tokens.find(ids)
        assert found is not None and found.label == label
        assert tokenizer.decode(ids[: found.end]) == f"Clear. <score>{label}"


# Labels of several tokens

WORDS = ScoreScale(["disagree", "strongly disagree", "agree", "agree strongly"], [1, 0, 2, 3])
HALVES = ScoreScale.steps(1, 5, 0.5)
SIGNS = ScoreScale(["-2", "-1", "0", "+1", "+2"])
TEN = ScoreScale.integers(1, 10)
ENDINGS = [
    # The scale, what is written behind the prefix, and the label that it is.
    (TEN, "10", "10"),
    (TEN, "1", "1"),
    (TEN, "10.", "10"),
    (TEN, "1. 0 errors", "1"),
    (TEN, "10/10", "10"),
    (TEN, "7/10", "7"),
    (TEN, "1/5", None),
    (TEN, "10.5", None),
    (TEN, "100", None),
    (TEN, "11", None),
    (TEN, "1.0", None),
    (HALVES, "4.5", "4.5"),
    (HALVES, "4", "4"),
    (HALVES, "4.", "4"),
    (HALVES, "4.5.", "4.5"),
    (HALVES, "4. 5 facts", "4"),
    (HALVES, "4.55", None),
    (HALVES, "4.25", None),
    (HALVES, "4.5-5", None),
    (HALVES, "45", None),
    (SIGNS, "-1", "-1"),
    (SIGNS, "+1", "+1"),
    (SIGNS, "0", "0"),
    (SIGNS, "1", None),
    (SIGNS, "-1.5", None),
    (SIGNS, "-12", None),
    (WORDS, "agree", "agree"),
    (WORDS, "agree strongly", "agree strongly"),
    (WORDS, "strongly disagree\nIt lacks one.", "strongly disagree"),
    (WORDS, "disagree", "disagree"),
    (WORDS, "agreeable", None),
    (WORDS, "strongly", None),
    (WORDS, "agree strongly.", "agree strongly"),
]


@pytest.mark.parametrize(("scale", "text", "label"), ENDINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_label_found_is_the_longest_that_the_text_shows(family, scale, text, label):
    tokenizer = make_tokenizer(family)
    tokens = ScoreTokens.resolve(scale, PREFIX, tokenizer)
    ids = tokenizer(f"It names 3 of 12 facts. {PREFIX}{text}", add_special_tokens=False)["input_ids"]
    found = tokens.find(ids)
    assert (None if found is None else found.label) == label
    if found is not None:
        assert tokenizer.decode(ids[: found.end]).endswith(PREFIX + label)
        assert tuple(ids[found.position : found.end]) == tokens.paths[scale.labels.index(label)]


def test_a_label_of_which_a_part_is_not_trained_is_not_found():
    tokenizer = make_tokenizer("qwen")
    tokens = ScoreTokens.resolve(TEN, PREFIX, tokenizer)
    ids = tokenizer(f"{PREFIX}10", add_special_tokens=False)["input_ids"]
    assert tokens.find(ids, [*ids[:-1], -100]) is None
    assert tokens.find(ids, [-100] * (len(ids) - 2) + ids[-2:]) is not None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["Rating: [[", "Score: ", "[RESULT] ", "Score:"])
def test_every_scale_can_be_read_after_every_prefix(family, prefix):
    tokenizer = make_tokenizer(family)
    for scale in (TEN, HALVES, SIGNS, WORDS, ScoreScale(["\u5dee", "\u597d"], [1, 2])):
        tokens = ScoreTokens.resolve(scale, prefix, tokenizer)
        for label in scale.labels:
            found = tokens.find(tokenizer(f"Clear.\n{prefix}{label}")["input_ids"])
            assert found is not None and found.label == label


# Scales in steps


def test_a_scale_in_steps_writes_each_number_with_as_few_digits_as_it_takes():
    assert ScoreScale.steps(1, 5, 0.5).labels == ("1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5")
    assert ScoreScale.steps(-0.3, 0.3, 0.1).labels == ("-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3")
    assert ScoreScale.steps(0, 100, 25).labels == ("0", "25", "50", "75", "100")
    assert ScoreScale.steps(1, 10, 1) == ScoreScale.integers(1, 10)


@pytest.mark.parametrize(("low", "high", "step"), [(1, 5, 0.3), (1, 5, 0), (1, 5, -1), (5, 1, 1)])
def test_steps_that_do_not_reach_the_top_are_refused(low, high, step):
    with pytest.raises(InputError, match="cannot be reached from"):
        ScoreScale.steps(low, high, step)


def test_a_scale_can_be_written_in_short():
    assert ScoreScale.parse("1:10") == ScoreScale.integers(1, 10)
    assert ScoreScale.parse("1:5:0.5") == ScoreScale.steps(1, 5, 0.5)
    assert ScoreScale.parse("-2:2").labels == ("-2", "-1", "0", "1", "2")


@pytest.mark.parametrize("text", ["", "10", "1:x", "1:2:3:4", "1:", "0:1e9", "0:inf", "0:nan", "1:5:0"])
def test_what_is_no_scale_in_short_is_refused(text):
    with pytest.raises(InputError, match=r"Expected LOW:HIGH|cannot be reached|Take larger steps|at least two labels"):
        ScoreScale.parse(text)


@pytest.mark.parametrize("labels", [[1.0, 1.5], [True, False]])
def test_labels_that_yaml_may_have_changed_are_refused(labels):
    with pytest.raises(InputError, match=r"Labels must be text, found .* quote them"):
        ScoreScale(labels)


def test_a_label_without_any_character_is_refused():
    with pytest.raises(InputError, match="must be written with some character"):
        ScoreScale(["", "1"], [0, 1])


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "</s>", "<pad>"])
def test_a_prefix_with_a_token_that_begins_or_ends_a_turn_is_refused(token):
    tokenizer = make_tokenizer("qwen", bos_token="</s>")
    with pytest.raises(InputError, match=f"holds the control token {re.escape(repr(token))}, which begins or ends a"):
        ScoreTokens.resolve(ScoreScale.integers(1, 5), f"Score{token}", tokenizer)


def test_a_label_with_another_token_behind_a_rationale_than_at_the_start_is_refused():
    characters = list(" .\n(12345Right:Score")
    pairs = [(before, "(") for before in " .\n"] + [(f"{before}(", label) for before in " .\n" for label in "12345"]
    vocabulary = [*dict.fromkeys(characters), *("".join(pair) for pair in pairs)]
    model = models.BPE({text: i for i, text in enumerate(vocabulary)}, pairs)
    backend = Tokenizer(model)
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.tokenize("(5") == ["(", "5"] and tokenizer.tokenize(". (5") == [".", " (5"]
    with pytest.raises(InputError, match=r"writes '1' after '\(' with other tokens behind a rationale than at the sta"):
        ScoreTokens.resolve(FIVE, "(", tokenizer)
    assert ScoreTokens.resolve(FIVE, "Score: ", tokenizer).ids == tuple(tokenizer.convert_tokens_to_ids(list("12345")))
