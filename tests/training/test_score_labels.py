"""Rows without a usable score: found on whole rows, counted, and refused, dropped or kept."""

import logging
import math
import re

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, LargeList, List, Value, load_from_disk
from datasets.fingerprint import Hasher
from tiny import CHATML, PREFIX, make_dataset, make_model, make_rows, make_tokenizer

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer, ScoreScale
from tract_trainer.scale import ScoreTokens
from tract_trainer.training.score_labels import PROBLEMS, Cut, add_score_labels, count_scores, target_row, targeted

TOKENIZER = make_tokenizer()
TOKENS = ScoreTokens.resolve(ScoreScale.integers(1, 5), PREFIX, TOKENIZER)
WAYS_OUT = ", or drop such rows with missing_score='drop'."


@pytest.fixture
def train(tmp_path):
    def build(dataset, **kwargs):
        defaults = {"max_length": None, "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
        args = RegressionAwareSFTConfig(str(tmp_path / "out"), **{**defaults, **kwargs})
        return RegressionAwareSFTTrainer(
            model=make_model(vocab_size=len(TOKENIZER)), args=args, train_dataset=dataset, processing_class=TOKENIZER
        )

    return build


def changed(n, places, **values):
    """`n` rows, with the columns in `values` set at `places`."""
    rows = make_rows(n)
    for place in places:
        rows[place].update(values)
    return Dataset.from_list(rows)


def refused(train, dataset, message, **kwargs):
    with pytest.raises(ValueError) as raised:
        train(dataset, **kwargs)
    assert str(raised.value) == message


def gold_of(dataset):
    """The gold score of each prepared row, NaN where none is due, and that it stands on the label."""
    gold = []
    for row in dataset:
        due = [(t, score) for t, score in enumerate(row["score_labels"]) if not math.isnan(score)]
        assert len(row["score_labels"]) == len(row["input_ids"]) and len(due) <= 1
        assert all(row["input_ids"][t] in TOKENS.ids and row["labels"][t] != -100 for t, _ in due)
        gold.append(due[0][1] if due else math.nan)
    return gold


# The target


def test_the_target_is_the_column_fractions_and_all(train):
    trainer = train(make_dataset(8))
    assert gold_of(trainer.train_dataset) == pytest.approx([4.0, 2.0, 3.6666667, 5.0, 1.0, 3.3333333, 2.0, 4.5])
    assert trainer.train_dataset.features["score_labels"].feature.dtype == "float32"
    assert "score_problem" not in trainer.train_dataset.column_names


@pytest.mark.parametrize("kind", [List(Value("int32")), LargeList(Value("int64")), List(Value("int64"), length=40)])
def test_batches_read_what_rows_read_whatever_arrow_holds_the_tokens_in(kind):
    texts = [f"Good {number}. {PREFIX}{number % 5 + 1}" for number in range(9)] + ["No score here"]
    pad, rows = TOKENIZER.pad_token_id, TOKENIZER(texts)["input_ids"]
    ids = [[pad] * (40 - len(row)) + row for row in rows]
    labels = [[-100] * 12 + row[12:] for row in ids]
    dataset = Dataset.from_dict(
        {"input_ids": ids, "labels": labels, "score": [float(number % 5 + 1) for number in range(10)]},
        Features({"input_ids": kind, "labels": kind, "score": Value("float64")}),
    ).select([9, 7, 3, 1, 0])
    found = targeted(dataset, TOKENS, Cut(), "Finding the scores")
    expected = [target_row(row, TOKENS, Cut()) for row in dataset]
    assert found["score_problem"][:] == [row["score_problem"] for row in expected] == ["missing", "", "", "", ""]
    np.testing.assert_array_equal(found["score_labels"][:], [row["score_labels"] for row in expected])
    assert found.format["type"] is None and found["input_ids"][:] == dataset["input_ids"][:]


def test_without_the_column_the_target_is_the_value_of_the_label_in_the_text(train):
    dataset = make_dataset(8, with_score=False)
    assert gold_of(train(dataset).train_dataset) == [4, 2, 4, 5, 1, 3, 2, 4]
    args = {"score_labels": list("12345"), "score_values": [0, 10, 20, 30, 40]}
    assert gold_of(train(dataset, **args).train_dataset) == [30, 10, 30, 40, 0, 20, 10, 30]


def test_tokenised_rows_get_the_same_targets_as_their_text(train):
    text = train(make_dataset(8)).train_dataset
    ready = Dataset.from_dict(
        {"input_ids": text["input_ids"][:], "labels": text["labels"][:], "score": make_dataset(8)["score"][:]}
    )
    assert gold_of(train(ready).train_dataset) == gold_of(text)


def test_a_score_half_way_between_two_labels_may_be_written_with_either(train):
    rows = [dict(make_rows(1)[0], completion=f"Fine. {PREFIX}{label}", score=2.5) for label in "23"]
    assert gold_of(train(Dataset.from_list(rows)).train_dataset) == [2.5, 2.5]


def test_a_score_that_went_through_float32_stays_on_its_scale(train):
    rows = [dict(row, completion=f"Fine. {PREFIX}4", score=0.8) for row in make_rows(2)]
    dataset = Dataset.from_list(rows).cast_column("score", Value("float32"))
    args = {"score_labels": list("1234"), "score_values": [0.2, 0.4, 0.6, 0.8]}
    assert gold_of(train(dataset, **args).train_dataset) == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize("with_score", [True, False])
@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_the_format_of_a_dataset_does_not_matter(train, kind, conversational, with_score):
    dataset = make_dataset(8, conversational=conversational, with_score=with_score)
    plain = train(dataset)
    for formatted in (dataset.with_format(kind), dataset.to_iterable_dataset().with_format(kind)):
        trainer = train(formatted, max_steps=1)
        assert gold_of(trainer.train_dataset) == gold_of(plain.train_dataset)
        assert trainer.judge_config == plain.judge_config


def test_a_transform_is_refused_by_trl(train):
    with pytest.raises(ValueError, match=r"uses `Dataset.with_transform\(\)`"):
        train(make_dataset(8).with_transform(lambda rows: rows))


# Each problem, as the user sees it


def test_rows_without_a_score_are_refused_with_count_share_first_row_and_remedy(train):
    dataset = changed(100, [17, 20, 40, 41, 60, 99], completion="Well, it is the response that lacks any.")
    refused(
        train,
        dataset.remove_columns("score"),
        "6 of 100 training rows (6.0 %) hold no score; the first is row 17, ending "
        "'Well, it is the response that lacks any.<|im_end|>'. Expected 'So the overall score is ' and one of "
        "['1', '2', '3', '4', '5'] among the trained tokens. End the completions with it, or set score_prefix to the "
        "text that yours have" + WAYS_OUT,
    )


def test_the_example_shows_the_last_eighty_characters(train):
    long = "The response is long. " * 30
    with pytest.raises(ValueError) as raised:
        train(changed(8, [3], completion=long))
    shown = re.search(r"ending '(.*?)'\. Expected", str(raised.value)).group(1)
    assert len(shown) == 80 and (long + "<|im_end|>").endswith(shown)


def test_the_prompts_closing_phrase_does_not_count(train):
    with pytest.raises(ValueError, match=r"^1 of 8 training rows \(12\.5 %\) hold no score; the first is row 5, "):
        train(changed(8, [5], prompt=f"An example: {PREFIX}4\n", completion="It is good."))


def turns(*contents):
    """Messages of user and assistant in turn."""
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, contents, strict=False)]


UNSCORED = {
    "user": {"messages": turns(f"Example: bad. {PREFIX}5\nNow rate this.", "I cannot tell.")},
    "assistant": {"messages": turns("Rate it.", f"Weak. {PREFIX}5", "Rate this.", "I cannot tell.")},
    "user_last": {"messages": turns("Rate it.", "Weak.", f"I should say: {PREFIX}5")},
    "number": {"messages": turns(f"Example: bad. {PREFIX}1", f"Weak. {PREFIX}10")},
    "trained_prompt": {"prompt": f"Example: bad. {PREFIX}5\nNow rate this.\n", "completion": "I cannot tell."},
    "completion": {
        "prompt": turns("Rate."),
        "completion": turns("", f"Weak. {PREFIX}5", "Sure?", "I cannot tell.")[1:],
    },
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", UNSCORED)
def test_a_score_before_the_last_turn_does_not_count(train, case, streaming):
    dataset = Dataset.from_list([UNSCORED[case]] * 3)
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    settings = {"completion_only_loss": False} if case == "trained_prompt" else {}
    kept = train(dataset, missing_score="keep", max_steps=1, **settings).train_dataset
    assert np.isnan(gold_of(kept)).all()
    with pytest.raises(ValueError, match=r"training rows (\(100\.0 %\) )?hold no score"):
        list(train(dataset, max_steps=1, **settings).train_dataset)


@pytest.mark.parametrize("parts", [False, True])
def test_a_score_in_the_last_turn_counts_whatever_stands_before_it(train, parts, monkeypatch):
    answer = f"Clear, if not {PREFIX}2, then {PREFIX}4"
    messages = turns(f"Example: {PREFIX}5", f"Weak. {PREFIX}1", "Rate this.", answer)
    if parts:
        template = CHATML.replace("message['content']", "message['content'][0]['text']")
        monkeypatch.setattr(TOKENIZER, "chat_template", template)
        messages = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
    assert gold_of(train(Dataset.from_list([{"messages": messages}])).train_dataset) == [4]


def test_scores_that_are_text_are_refused_with_the_cast(train):
    rows = [{**row, "score": str(row["score"])} for row in make_rows(8)]
    refused(
        train,
        Dataset.from_list(rows),
        "The column `score` must hold numbers, found '4.0' (str). Convert it, e.g. dataset.cast_column('score', "
        "datasets.Value('float32')), or remove it to use the label in the text.",
    )


def test_booleans_are_no_scores():
    row = {"input_ids": [1], "labels": [1], "score": True}
    with pytest.raises(ValueError, match=r"^The column `score` must hold numbers, found True \(bool\)\."):
        target_row(row, TOKENS, Cut(None, "keep_start"))


@pytest.mark.parametrize(("empty", "shown"), [(None, "None"), (math.nan, "nan")])
def test_an_empty_score_is_not_replaced_by_the_label(train, empty, shown):
    refused(
        train,
        changed(8, [1, 6], score=empty),
        f"2 of 8 training rows (25.0 %) have an empty `score`; the first is row 1, with score {shown}, ending "
        "'Weak: 2 errors in 10 lines. So the overall score is 2<|im_end|>'. Fill in the column, or remove it to use "
        "the labels in the text" + WAYS_OUT,
    )


@pytest.mark.parametrize("score", [11.0, 0.5, -math.inf, math.inf])
def test_a_score_off_the_scale_is_refused_even_where_the_text_is_right(train, score):
    refused(
        train,
        changed(8, [0], score=score),
        "1 of 8 training rows (12.5 %) have a `score` off the scale of 1 to 5; the first is row 0, with score "
        f"{score}, ending 'The answer is clear. So the overall score is 4<|im_end|>'. Correct the column, or set "
        "score_labels and score_values to its scale" + WAYS_OUT,
    )


def test_a_label_that_is_not_nearest_to_the_score_is_refused(train):
    refused(
        train,
        changed(8, [0], score=2.0),
        "1 of 8 training rows (12.5 %) end with a label that is not the nearest to their `score`; the first is row 0, "
        "with score 2.0, ending 'The answer is clear. So the overall score is 4<|im_end|>'. Correct the text or the "
        "column, or remove the column to use the labels in the text" + WAYS_OUT,
    )


def test_a_decoy_left_as_the_last_closing_phrase_is_seen_by_its_score(train):
    # The real score is missing; what is found is the decoy's 2, and the column says 5.
    with pytest.raises(ValueError, match=r"not the nearest to their `score`; the first is row 2, with score 5\.0"):
        train(changed(8, [2], completion=f"{PREFIX}2 at first sight, but the example is right.", score=5.0))


def test_several_problems_are_each_counted_the_most_frequent_first(train):
    rows = make_rows(8)
    rows[0]["score"] = 9.0
    for i in (2, 3, 4):
        rows[i]["completion"] = "Nothing."
    with pytest.raises(ValueError) as raised:
        train(Dataset.from_list(rows))
    first, second = str(raised.value).split("\n")
    assert first.startswith("3 of 8 training rows (37.5 %) hold no score; the first is row 2, ")
    assert second.startswith("1 of 8 training rows (12.5 %) have a `score` off the scale of 1 to 5; the first is row 0")


def test_evaluation_rows_are_named_as_such(train, tmp_path):
    args = RegressionAwareSFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None)
    for evals, name in ((changed(8, [1], score=9.0), "eval"), ({"mine": changed(8, [1], score=9.0)}, "mine")):
        with pytest.raises(ValueError, match=rf"^1 of 8 {name} rows \(12\.5 %\) have a `score` off the scale"):
            RegressionAwareSFTTrainer(
                model=make_model(vocab_size=len(TOKENIZER)),
                args=args,
                train_dataset=make_dataset(8),
                eval_dataset=evals,
                processing_class=TOKENIZER,
            )


# Scores that come as a column along the tokens


def ready(*columns):
    return Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "score_labels": c} for c in columns])


NAN = math.nan


def test_score_labels_off_the_scale_are_refused(train):
    shown = TOKENIZER.decode([5, 6, 7, 8])
    refused(
        train,
        ready([NAN, 4.5, NAN, 1.0], [NAN, 4.0, NAN, 9.0]),
        "1 of 2 training rows (50.0 %) have `score_labels` off the scale of 1 to 5; the first is row 1, ending "
        f"{shown!r}. Correct that column, or set the settings score_labels and score_values to its scale" + WAYS_OUT,
    )


@pytest.mark.parametrize("missing_score", ["drop", "keep"])
def test_rows_whose_score_labels_are_off_or_cut_are_counted(train, missing_score):
    dataset = ready([NAN, 9.0, NAN, NAN], [NAN, 4.0, NAN, 2.0], [NAN, NAN, 3.0, NAN], [NAN] * 4)
    trainer = train(dataset, max_length=3, missing_score=missing_score)
    lost = {"have `score_labels` off the scale of 1 to 5": 1, "lose their score to max_length=3": 1}
    assert trainer.row_counts["train"] == (4, lost, 2 if missing_score == "drop" else 4)
    whole = [[NAN, NAN, 3.0], [NAN] * 3]
    kept = whole if missing_score == "drop" else [[NAN] * 3, [NAN] * 3, *whole]
    np.testing.assert_array_equal(trainer.train_dataset["score_labels"][:], kept)


def test_a_score_label_cut_off_is_refused_with_the_length(train):
    with pytest.raises(
        ValueError, match=r"^1 of 2 training rows \(50\.0 %\) lose their score to max_length=3; the first"
    ):
        train(ready([NAN, 4.0, NAN, NAN], [NAN, NAN, NAN, 2.0]), max_length=3)


def test_score_labels_of_another_length_than_the_row_are_refused(train):
    refused(
        train,
        ready([NAN, 4.0, 5.0]),
        "The column `score_labels` must hold a number per token, found 3 for 4 tokens. Give NaN where no score is due.",
    )


def test_score_labels_that_are_collated_unprepared_are_checked_too(train):
    trainer = train(ready([NAN, 4.0, NAN, 9.0]), dataset_kwargs={"skip_prepare_dataset": True}, max_steps=1)
    with pytest.raises(ValueError, match=r"^Some rows have `score_labels` off the scale of 1 to 5; the first is one "):
        trainer.train()


def test_a_prepared_dataset_is_prepared_again_to_the_same(train):
    once = train(make_dataset(8), missing_score="keep", max_length=50).train_dataset
    again = train(once, max_length=50)
    assert again.row_counts["train"] == (8, {}, 8)
    assert 0 < count_scores(once) < 8
    assert gold_of(again.train_dataset) == pytest.approx(gold_of(once), nan_ok=True)


def packed(rows):
    """Rows that were tokenised and packed without the trainer: two a packed row, without `score_labels`."""
    ids = [TOKENIZER(row["prompt"] + row["completion"])["input_ids"] for row in rows]
    pairs = list(zip(ids[::2], ids[1::2], strict=True))
    return Dataset.from_list([{"input_ids": a + b, "labels": a + b, "seq_lengths": [len(a), len(b)]} for a, b in pairs])


PACKED = (
    "A row is packed (it has `seq_lengths`) without `score_labels`, so of its scores only the last could be found. "
    "Give the rows as they were before packing, and let the trainer pack them: packing=True."
)


@pytest.mark.parametrize("kwargs", [{"padding_free": True}, {"packing": True, "max_length": 512}])
def test_rows_that_were_packed_without_score_labels_are_refused(train, kwargs):
    refused(train, packed(make_rows(8)), PACKED, **kwargs)


def test_packed_rows_that_are_collated_unprepared_are_refused_too(train):
    settings = {"packing": True, "max_length": 512, "max_steps": 1}
    trainer = train(packed(make_rows(8)), dataset_kwargs={"skip_prepare_dataset": True}, **settings)
    with pytest.raises(ValueError, match=f"^{re.escape(PACKED)}$"):
        trainer.train()


# Scores cut off by max_length


def whole(train):
    return [len(row["input_ids"]) for row in train(make_dataset(8)).train_dataset]


def test_a_score_cut_off_by_max_length_is_refused_with_the_length(train):
    lengths = whole(train)  # each row ends: label, <|im_end|>
    max_length = sorted(lengths)[-2]  # one row is longer
    longest = int(np.argmax(lengths))
    assert lengths[longest] > max_length + 1
    with pytest.raises(ValueError) as raised:
        train(make_dataset(8), max_length=max_length)
    message = str(raised.value)
    assert message.startswith(
        f"1 of 8 training rows (12.5 %) lose their score to max_length={max_length}; the first is row {longest}, ending"
    )
    assert message.endswith("'. Raise max_length" + WAYS_OUT)


def test_an_earlier_closing_phrase_does_not_stand_in_for_the_score_cut_off(train):
    # Row 2 holds a decoy before its score. Cut between the two, searching the shortened row would find the decoy.
    rows = train(make_dataset(8)).train_dataset
    position = int(np.flatnonzero(~np.isnan(rows[2]["score_labels"]))[0])
    kept = train(make_dataset(8), max_length=position, missing_score="keep").train_dataset
    assert TOKENS.find(kept[2]["input_ids"], kept[2]["labels"]) is not None  # the decoy is there
    assert math.isnan(gold_of(kept)[2])


@pytest.mark.parametrize("extra", [0, 1])
def test_a_score_is_kept_as_long_as_its_own_token_is(train, extra):
    rows = train(make_dataset(8)).train_dataset
    longest = int(np.argmax([len(row) for row in rows["input_ids"]]))
    position = int(np.flatnonzero(~np.isnan(rows[longest]["score_labels"]))[0])
    cut = train(make_dataset(8), max_length=position + extra, missing_score="keep").train_dataset
    assert math.isnan(gold_of(cut)[longest]) is (extra == 0)
    assert max(len(row) for row in cut["input_ids"]) == position + extra
    if extra:
        train(make_dataset(8), max_length=position + extra)
    else:  # and it is said, not found out
        with pytest.raises(ValueError, match=rf"rows \(.*\) lose their score to max_length={position}; "):
            train(make_dataset(8), max_length=position)


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
def test_keep_end_keeps_a_score_that_keep_start_would_cut(train):
    rows = train(make_dataset(8)).train_dataset
    for keep in (3, 2, 1):  # the end is: predicting token, label, <|im_end|>
        cut = Cut(keep, "keep_end")
        for row in rows:
            position = int(np.flatnonzero(~np.isnan(row["score_labels"]))[0])
            assert cut.keeps(position, len(row["input_ids"])) is (keep == 3)
    kept = train(make_dataset(8), max_length=20, truncation_mode="keep_end").train_dataset
    assert {len(row) for row in kept["input_ids"]} == {20}
    assert gold_of(kept) == pytest.approx(gold_of(rows))
    with pytest.raises(ValueError, match=r"^8 of 8 training rows \(100\.0 %\) lose their score to max_length=2; "):
        train(make_dataset(8), max_length=2, truncation_mode="keep_end")


def test_packing_that_splits_loses_the_score_whose_label_opens_a_piece(train):
    # Pieces are cut every max_length tokens: a label at a multiple of it is not predicted by anything in its piece.
    rows = train(make_dataset(8)).train_dataset
    positions = [int(np.flatnonzero(~np.isnan(row))[0]) for row in rows["score_labels"]]
    max_length = positions[0]
    lost = [position % max_length == 0 for position in positions]
    assert lost[0]
    args = {"packing": True, "packing_strategy": "bfd_split", "padding_free": True, "shuffle_dataset": False}
    with pytest.raises(
        ValueError,
        match=rf"^{sum(lost)} of 8 training rows \(.*\) lose their score to max_length={max_length}; the first ",
    ):
        train(make_dataset(8), max_length=max_length, **args)
    packed = train(make_dataset(8), max_length=max_length, missing_score="keep", **args).train_dataset
    assert count_scores(packed) == 8 - sum(lost)
    for row in packed:  # what is left is not at the start of a piece
        starts = {0, *np.cumsum(row["seq_lengths"])[:-1].tolist()}
        assert not starts & {t for t, score in enumerate(row["score_labels"]) if not math.isnan(score)}


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packed_rows_carry_every_score_on_its_label(train, strategy):
    args = {"packing": True, "packing_strategy": strategy, "padding_free": True, "max_length": 200}
    packed = train(make_dataset(8), **args).train_dataset
    gold = []
    for row in packed:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["score_labels"]) == sum(row["seq_lengths"])
        due = [t for t, score in enumerate(row["score_labels"]) if not math.isnan(score)]
        for t in due:
            label = TOKENS.scale.labels[TOKENS.ids.index(row["input_ids"][t])]
            assert TOKENS.scale.writes(label, row["score_labels"][t])
        gold += [row["score_labels"][t] for t in due]
    assert len(packed) < 8
    assert sorted(gold) == pytest.approx(sorted(make_dataset(8)["score"][:]))
    assert count_scores(packed) == 8


# Dropped and kept


PROBLEM_ROWS = {1: {"completion": "Nothing."}, 3: {"score": math.nan}, 4: {"score": 11.0}, 6: {"completion": "None."}}


def problem_dataset():
    rows = make_rows(8)
    for place, values in PROBLEM_ROWS.items():
        rows[place].update(values)
    return Dataset.from_list(rows)


@pytest.mark.parametrize("missing_score", ["drop", "keep"])
def test_dropped_and_kept_rows_are_counted_in_the_log(train, missing_score, caplog):
    with caplog.at_level(logging.WARNING, logger="tract_trainer.training.trainer"):
        trainer = train(problem_dataset(), missing_score=missing_score)
    said = [record.getMessage() for record in caplog.records if record.name == "tract_trainer.training.trainer"]
    assert [re.sub(r"^\[RANK 0\] |; the first .*", "", sentence) for sentence in said] == [
        f"missing_score='{missing_score}': 2 of 8 training rows (25.0 %) hold no score",
        f"missing_score='{missing_score}': 1 of 8 training rows (12.5 %) have an empty `score`",
        f"missing_score='{missing_score}': 1 of 8 training rows (12.5 %) have a `score` off the scale of 1 to 5",
    ]
    outcome = {"drop": "They are left out.", "keep": "What is trained of them counts in the cross-entropy alone."}[
        missing_score
    ]
    assert all(sentence.endswith(outcome) for sentence in said)
    gold = [math.nan if i in PROBLEM_ROWS else row["score"] for i, row in enumerate(make_rows(8))]
    if missing_score == "drop":
        gold = [score for score in gold if not math.isnan(score)]
    assert gold_of(trainer.train_dataset) == pytest.approx(gold, nan_ok=True)


def test_a_dataset_without_problems_logs_nothing(train, caplog):
    with caplog.at_level(logging.WARNING, logger="tract_trainer.training.trainer"):
        train(make_dataset(8), missing_score="drop")
    assert not [record for record in caplog.records if record.name == "tract_trainer.training.trainer"]


def test_rows_that_are_dropped_leave_the_others_in_their_order(train):
    kept = train(problem_dataset(), missing_score="drop").train_dataset
    clean = train(make_dataset(8)).train_dataset
    assert kept["input_ids"][:] == [row for i, row in enumerate(clean["input_ids"]) if i not in PROBLEM_ROWS]


@pytest.mark.parametrize("missing_score", ["error", "drop", "keep"])
def test_two_processes_find_what_one_finds(train, missing_score):
    def outcome(num_proc):
        try:
            prepared = train(problem_dataset(), missing_score=missing_score, dataset_num_proc=num_proc).train_dataset
        except ValueError as error:
            return str(error)
        return prepared["input_ids"][:], str(prepared["score_labels"][:])

    assert outcome(2) == outcome(None)


def test_a_dataset_all_of_whose_rows_are_dropped_is_refused(train):
    with pytest.raises(
        ValueError,
        match=r"^No row of the training dataset is left to use\.\n"
        r"8 of 8 training rows \(100\.0 %\) hold no score; the first is row 0, ending ",
    ):
        train(changed(8, range(8), completion="Nothing."), missing_score="drop")


def test_a_dataset_without_a_trained_token_within_max_length_is_refused(train):
    with pytest.raises(ValueError, match="No row of the train dataset has a trained token within max_length=10"):
        train(make_dataset(8), missing_score="keep", max_length=10)


@pytest.mark.parametrize("given", [DatasetDict(train=make_dataset(8)), make_dataset(8).to_list()])
def test_what_is_no_dataset_is_refused_by_trl(train, given):
    with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`"):
        train(given)


def test_an_empty_dataset_is_refused(train):
    empty = make_dataset(8).select([])
    refused(train, empty, "The train dataset has no rows. Check the file or the filter that it comes from.")


# Streaming


def stream(rows):
    columns = {name: Value("string" if name != "score" else "float64") for name in rows[0]}
    return IterableDataset.from_generator(lambda: iter(rows), features=Features(columns))


def problem_rows():
    return problem_dataset().to_list()


def test_a_stream_is_refused_when_the_row_is_read(train):
    trainer = train(stream(problem_rows()), max_steps=1)
    rows = iter(trainer.train_dataset)
    assert gold_of([next(rows)]) == [4.0]
    with pytest.raises(
        ValueError,
        match=r"^Some training rows hold no score; the first is one ending 'Nothing\.<\|im_end\|>'\. Expected .*"
        r", or drop such rows with missing_score='drop'\.$",
    ):
        next(rows)


@pytest.mark.parametrize("missing_score", ["drop", "keep"])
def test_a_stream_drops_and_keeps_the_rows_that_a_dataset_does(train, missing_score):
    streamed = list(train(stream(problem_rows()), missing_score=missing_score, max_steps=1).train_dataset)
    whole = list(train(problem_dataset(), missing_score=missing_score).train_dataset)
    assert [row["input_ids"] for row in streamed] == [row["input_ids"] for row in whole]
    assert gold_of(streamed) == pytest.approx(gold_of(whole), nan_ok=True)
    assert all("score_problem" not in row for row in streamed)


def test_a_packed_stream_carries_its_scores(train):
    args = {"packing": True, "padding_free": True, "max_length": 200, "max_steps": 1}
    rows = list(train(stream(make_rows(8)), **args).train_dataset)
    gold = [score for row in rows for score in row["score_labels"] if not math.isnan(score)]
    assert sorted(gold) == pytest.approx(sorted(make_dataset(8)["score"][:]))


# The cache of `datasets`


def test_what_is_hashed_for_the_cache_is_the_same_before_and_after_use():
    fresh = ScoreTokens.resolve(ScoreScale.integers(1, 5), PREFIX, make_tokenizer())
    before = Hasher.hash({"tokens": fresh, "cut": Cut(10, "keep_start")})
    fresh.find(fresh.tokenizer(f"Good. {PREFIX}4")["input_ids"])
    fresh.tokenizer(["a", "b"], padding=True, return_tensors="pt")
    again = ScoreTokens.resolve(ScoreScale.integers(1, 5), PREFIX, make_tokenizer())
    assert Hasher.hash({"tokens": fresh, "cut": Cut(10, "keep_start")}) == before
    assert Hasher.hash({"tokens": again, "cut": Cut(10, "keep_start")}) == before
    assert Hasher.hash({"tokens": again, "cut": Cut(11, "keep_start")}) != before
    assert Hasher.hash(target_row) == Hasher.hash(target_row)


def test_another_version_of_the_package_does_not_read_the_cache(train, monkeypatch):
    dataset = make_dataset(8)
    same, again = train(dataset).train_dataset, train(dataset).train_dataset
    monkeypatch.setattr("tract_trainer.training.score_labels.version", lambda package: f"another {package}")
    assert same._fingerprint == again._fingerprint != train(dataset).train_dataset._fingerprint


@pytest.mark.parametrize("missing_score", ["drop", "keep"])
def test_the_second_preparation_reads_the_cache_and_still_counts(train, tmp_path, missing_score, caplog):
    problem_dataset().save_to_disk(tmp_path / "data")

    def prepare():
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="tract_trainer.training.trainer"):
            prepared = train(load_from_disk(tmp_path / "data"), missing_score=missing_score).train_dataset
        return prepared, [r.getMessage() for r in caplog.records if r.name == "tract_trainer.training.trainer"]

    first, said = prepare()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("cache-*.arrow")}
    assert files, "the preparation is cached beside the dataset"
    second, said_again = prepare()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("cache-*.arrow")} == files
    assert said == said_again and len(said) == 3
    assert second._fingerprint == first._fingerprint
    assert second["input_ids"][:] == first["input_ids"][:]


# The function by itself


def test_each_problem_has_a_complaint_and_a_remedy():
    assert set(PROBLEMS) == {
        "missing", "cut", "empty", "off_scale", "labels_off_scale", "mismatch", "asked", "no_content", "thoughts",
        "ends_early",
    }  # fmt: skip
    assert all(len(texts) == 2 and all(texts) for texts in PROBLEMS.values())


def test_the_number_of_rows_is_written_with_thousands_separators():
    rows = TOKENIZER("Nothing.")["input_ids"]
    dataset = Dataset.from_dict({"input_ids": [rows] * 2000, "labels": [rows] * 2000})
    with pytest.raises(ValueError, match=r"^2,000 of 2,000 mine rows \(100\.0 %\) hold no score"):
        add_score_labels(dataset, TOKENS, Cut(None, "keep_start"), "error", "mine")
