"""What a model writes becomes a rationale, without what the chat template puts before an answer."""

import math

import pytest
import torch
from tiny import FAMILIES, PREFIX, RATIONALES, make_tokenizer

from tract_trainer import JudgeConfig
from tract_trainer.data.records import close
from tract_trainer.data.rendering import RecordRows, prompt_ids, row_ids
from tract_trainer.engines.completions import Places, label_log_probs, lead, places_due, read_written
from tract_trainer.engines.trie import LabelTrie
from tract_trainer.scale import ScoreScale, ScoreTokens

CONFIG = JudgeConfig(list("12345"), [1, 2, 3, 4, 5], PREFIX)
PROMPT = [{"role": "user", "content": "Rate the response from 1 to 5.\n"}]

# What opens an answer in a finished row, and what the generation prompt has of it.
OPENINGS = {
    "no lead": ("", ""),
    "think block": ("<think>\n\n</think>\n\n", ""),  # Qwen3
    "think block begun": ("<think>\n\n</think>\n\n", "<think>\n"),
    "think block whole": ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
    "think block begun otherwise": ("<think></think>", "<think>\n"),  # Nemotron
    "channel": ("<|channel|>final<|message|>", ""),  # gpt-oss
    "words": ("The answer is: ", ""),
    "letters of three bytes": ("答案\n", ""),
}


def scored(family, opening):
    before, asked = OPENINGS[opening]
    tokenizer = make_tokenizer(family)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>"]})
    turn = "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + before + "{% endif %}{{ m.content }}<|im_end|>"
    tokenizer.chat_template = (
        "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ '"
        + asked.replace("\n", "\\n") + "' }}{% endif %}"
    )  # fmt: skip
    return ScoreTokens.resolve(CONFIG.scale, PREFIX, tokenizer)


def kept(tokenizer, text):
    """`text` without what is special to this tokenizer: to that of the mistral family, some letters are."""
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)


def read(tokens, prompt, written):
    """The rationale, with the place of the label as the only log-probability."""
    stop = [tokens.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return read_written(tokens, prompt, written, stop, lambda place: [place] * 5, lead(tokens, CONFIG))


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rationale_is_what_was_trained_as_one_without_what_the_template_puts_before_it(family, opening):
    tokens = scored(family, opening)
    prompt = prompt_ids(PROMPT, tokens.tokenizer, True)
    rationales = [text for text in RATIONALES if kept(tokens.tokenizer, text) == text]
    assert len(rationales) >= 4
    for rationale in rationales:
        row = row_ids(PROMPT, close(rationale, PREFIX, "4"), tokens.tokenizer, True)
        begun = next((i for i, pair in enumerate(zip(prompt, row, strict=False)) if len(set(pair)) > 1), len(prompt))
        found = read(tokens, row[:begun], row[begun:])
        position = tokens.find(row).position
        assert (found.text.strip(), found.label) == (rationale, "4")
        assert found.num_tokens == position + 1 - begun and set(found.log_probs) == {position - begun}
        assert not found.truncated
        record = {"prompt": PROMPT}
        assert RecordRows(tokens, CONFIG).scored_ids(record, found.text) == row[:position]


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize(
    "text", ["final answer: right. ", "<think>It is right.</think> ", "The answer is clear. ", " "]
)
def test_what_a_model_writes_without_the_lead_is_left_alone(opening, text):
    tokens = scored("qwen", opening)
    written = tokens.tokenizer(f"{text}{PREFIX}4")["input_ids"]
    found = read(tokens, prompt_ids(PROMPT, tokens.tokenizer, True), written)
    assert (found.text, found.label) == (text, "4")


def test_a_token_that_holds_the_end_of_the_lead_and_the_start_of_the_answer_is_cut_in_two():
    tokens = scored("gpt2", "words")
    ids = tokens.tokenizer("The answer is: clear.")["input_ids"]
    assert " clear" in [tokens.tokenizer.decode([token]) for token in ids]
    assert read(tokens, prompt_ids(PROMPT, tokens.tokenizer, True), ids).text == "clear."


@pytest.mark.parametrize("opening", ["think block", "channel", "letters of three bytes"])
def test_a_rationale_that_is_cut_within_the_lead_is_empty(opening):
    tokens = scored("qwen", opening)
    ids = tokens.tokenizer(OPENINGS[opening][0])["input_ids"]
    for count in range(len(ids) + 1):
        assert read(tokens, prompt_ids(PROMPT, tokens.tokenizer, True), ids[:count]).text == ""


def test_a_judge_of_plain_text_has_no_lead():
    tokens = scored("qwen", "think block")
    tokens.tokenizer.chat_template = None
    plain = JudgeConfig(**{**vars(CONFIG), "conversational": False})
    assert lead(tokens, plain) == ""


# Which score is the judgment

FOUR = f"Clear. {PREFIX}4"
ENDINGS = {
    # What a model wrote, the score that is read, the rationale before it, and whether it ran to its limit.
    "it ends": (f"{FOUR}<|im_end|>", "4", "Clear. ", False),
    "it ends after a few words": (f"{FOUR} of 5.<|im_end|>", "4", "Clear. ", False),
    "an earlier score is quoted": (
        f"{PREFIX}2 at first sight. {FOUR}<|im_end|>",
        "4",
        f"{PREFIX}2 at first sight. Clear. ",
        False,
    ),
    "another line goes before": (f"{PREFIX}2\n\nBut: {FOUR}<|im_end|>", "4", f"{PREFIX}2\n\nBut: Clear. ", False),
    "it never ends": (f"{FOUR}\n\nRate the next. {PREFIX}2\n\nRate the next. {PREFIX}1\n\nRate", "4", "Clear. ", True),
    "it repeats itself": (FOUR + f"\n{PREFIX}3" * 9, "4", "Clear. ", True),
    "it begins another turn": (f"{FOUR}<|im_start|>user\nAgain. {PREFIX}2<|im_end|>", "4", "Clear. ", False),
    "it begins two others": (f"{FOUR}<|im_start|>a {PREFIX}2<|im_start|>b {PREFIX}1<|im_end|>", "4", "Clear. ", False),
    "a turn begins before any score": (f"Weak.<|im_start|>a {FOUR}<|im_end|>", "4", "Weak.a Clear. ", False),
    "it is cut before a score": ("The answer is cl", None, "The answer is cl", True),
    "it ends without a score": ("Clear.<|im_end|>", None, "Clear.", False),
    "after a think block": (
        f"<think>{PREFIX}2</think>{FOUR}<|im_end|>",
        "4",
        f"<think>{PREFIX}2</think>Clear. ",
        False,
    ),
    "only in a think block": (
        f"<think>{PREFIX}2</think>\nIt is clear.<|im_end|>",
        None,
        f"<think>{PREFIX}2</think>\nIt is clear.",
        False,
    ),
    "a think block is named": (
        f"The response has <think> and no </think>. {FOUR}<|im_end|>",
        "4",
        "The response has <think> and no </think>. Clear. ",
        False,
    ),
    "a think block is named behind it": (f"{FOUR} (</think> is left.)<|im_end|>", "4", "Clear. ", False),
    "in a think block without an end": (
        f"<think>Hm. {PREFIX}2, or not? {PREFIX}3",
        None,
        f"<think>Hm. {PREFIX}2, or not? {PREFIX}3",
        True,
    ),
    "after the think block, without an end": (
        f"<think>{PREFIX}2</think>{FOUR}\n{PREFIX}1\n",
        "4",
        f"<think>{PREFIX}2</think>Clear. ",
        True,
    ),
    "only in other kinds of think blocks": (
        f"[THINK]{PREFIX}2[/THINK]Clear.<|im_end|>",
        None,
        f"[THINK]{PREFIX}2[/THINK]Clear.",
        False,
    ),
    "a channel": (
        f"<|channel|>analysis<|message|>{PREFIX}2<|channel|>final<|message|>{FOUR}<|im_end|>",
        "4",
        "Clear. ",
        False,
    ),
    "a channel without a score": (
        f"<|channel|>analysis<|message|>{PREFIX}2<|channel|>final<|message|>Clear.<|im_end|>",
        None,
        "Clear.",
        False,
    ),
}


@pytest.mark.parametrize("family", ["qwen", "gpt2", "llama3"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_score_that_ends_the_turn_is_the_judgment(family, ending):
    text, label, rationale, truncated = ENDINGS[ending]
    tokens = scored(family, "no lead")
    prompt = prompt_ids(PROMPT, tokens.tokenizer, True)
    found = read(tokens, prompt, tokens.tokenizer(text)["input_ids"])
    assert (found.label, found.text, found.truncated) == (label, rationale, truncated)
    assert (found.log_probs is None) is (label is None)


@pytest.mark.parametrize("block", [("<think>\n", "</think>\n"), ("[THINK]", "[/THINK]")])
def test_a_score_in_a_think_block_that_the_prompt_begins_does_not_count(block):
    tokens = scored("qwen", "no lead")
    begins, ends = block
    prompt = tokens.tokenizer(f"Rate it.{begins}")["input_ids"]
    for text, label in ((f"{PREFIX}2{ends}Clear.", None), (f"{PREFIX}2{ends}{FOUR}", "4"), (FOUR, "4")):
        assert read(tokens, prompt, tokens.tokenizer(f"{text}<|im_end|>")["input_ids"]).label == label


def test_the_log_probabilities_are_those_of_the_score_that_is_read():
    tokens = scored("qwen", "no lead")
    ids = tokens.tokenizer(f"{FOUR}\n\nRate the next. {PREFIX}2\n\n")["input_ids"]
    found = read(tokens, prompt_ids(PROMPT, tokens.tokenizer, True), ids)
    assert set(found.log_probs) == {len(tokens.tokenizer(FOUR)["input_ids"]) - 1}


def test_a_prefix_and_labels_that_are_special_tokens_begin_no_turn():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<score>", *(f"<s{i}>" for i in range(1, 6))]})
    config = JudgeConfig([f"<s{i}>" for i in range(1, 6)], [1, 2, 3, 4, 5], "<score>")
    tokens = ScoreTokens.resolve(config.scale, "<score>", tokenizer)
    ids = tokenizer("It seems <score><s2> and <score><s3> but is <score><s4><|im_end|>")["input_ids"]
    assert read(tokens, [5, 6], ids).label == "<s4>"


# Labels of several tokens

SEVERAL = [
    ScoreScale.integers(1, 10),
    ScoreScale.integers(0, 100),
    ScoreScale.steps(1, 5, 0.5),
    ScoreScale(["10", "20"]),
    ScoreScale(["disagree", "strongly disagree", "agree", "agree strongly"], [1, 0, 2, 3]),
]


@pytest.mark.parametrize("scale", SEVERAL, ids=lambda scale: scale.labels[-1])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_single_tokens_make_those_of_the_trie(family, scale):
    tokens = ScoreTokens.resolve(scale, PREFIX, make_tokenizer(family))
    torch.manual_seed(0)
    log_probs = torch.randn(len(tokens.nodes), len(tokens.tokenizer)).mul(3).log_softmax(-1)
    known, asked = {(): log_probs[0].tolist()}, 0
    while due := places_due(tokens, known):
        known |= {node: log_probs[tokens.nodes.index(node)].tolist() for node in due}
        asked += 1
    assert asked <= tokens.depth
    expected = LabelTrie(tokens).label_log_probs(log_probs[None])[0].exp().tolist()
    assert list(map(math.exp, label_log_probs(tokens, known))) == pytest.approx(expected, rel=1e-4, abs=2e-9)


def test_what_the_judge_would_hardly_begin_is_not_asked_for():
    tokens = ScoreTokens.resolve(ScoreScale.steps(1, 5, 0.5), PREFIX, make_tokenizer())
    one, two, point, five = tokens.tokenizer.convert_tokens_to_ids(["1", "2", ".", "5"])
    root = {**dict.fromkeys(tokens.ids, math.log(1e-12)), one: math.log(0.9), two: math.log(0.1)}
    assert places_due(tokens, {(): root}) == [(one,), (two,)]
    known = {(): root, (one,): {point: math.log(0.5)}, (two,): {point: -math.inf}}
    assert places_due(tokens, known) == [(one, point)]
    known[one, point] = {five: 0.0}
    assert not places_due(tokens, known)
    found = dict(zip(tokens.scale.labels, map(math.exp, label_log_probs(tokens, known)), strict=True))
    assert [found[label] for label in ("1", "1.5", "2", "2.5")] == pytest.approx([0.45, 0.45, 0.1, 0])
    assert found["3"] == pytest.approx(1e-12)


def test_labels_of_one_token_keep_their_log_probabilities():
    tokens = scored("qwen", "no lead")
    root = {token: -0.1 * i - 1e-7 for i, token in enumerate(tokens.ids)}
    assert not places_due(tokens, {(): root})
    assert label_log_probs(tokens, {(): root}) == tuple(root.values())


@pytest.mark.parametrize(
    ("scale", "label"),
    [(SEVERAL[0], "10"), (SEVERAL[0], "1"), (SEVERAL[2], "4.5"), (SEVERAL[4], "agree strongly")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_label_of_several_tokens_is_no_part_of_the_rationale(family, scale, label):
    tokens = ScoreTokens.resolve(scale, PREFIX, make_tokenizer(family))
    prompt = prompt_ids(PROMPT, tokens.tokenizer, True)
    row = row_ids(PROMPT, close("It is clear.", PREFIX, label), tokens.tokenizer, True)
    stop = [tokens.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    places = Places()
    found = read_written(tokens, prompt, row[len(prompt) :], stop, places.of(0))
    assert (found.text.strip(), found.label) == ("It is clear.", label)
    path = tokens.paths[scale.labels.index(label)]
    assert tuple(row[len(prompt) + places[0] :][: len(path)]) == path
