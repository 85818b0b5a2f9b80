"""What a model writes becomes a rationale, without what the chat template puts before an answer."""

import pytest
from tiny import FAMILIES, PREFIX, RATIONALES, make_tokenizer

from tract_trainer import JudgeConfig
from tract_trainer.data.records import close
from tract_trainer.data.rendering import RecordRows, prompt_ids, row_ids
from tract_trainer.engines.completions import lead, read_written
from tract_trainer.scale import ScoreTokens

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
    return read_written(tokens, prompt, written, [], lambda place: [place] * 5, lead(tokens, CONFIG))


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
        assert found.num_tokens == len(row) - begun and set(found.log_probs) == {position - begun}
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
