"""One reader for all commands: files of every format, renamed columns, one rubric for all, and what cannot be read."""

import csv
import json

import files
import pytest
from datasets import Dataset

from tract_trainer.data.benchmarks import own_benchmark
from tract_trainer.data.reading import read_record, read_rows, read_rubric
from tract_trainer.errors import InputError

ROWS = [
    {"question": "Name a prime.", "response": "7", "human": "5", "note": "a, b"},
    {"question": "Name\nanother.", "response": '"8"', "human": "1.5", "note": ""},
]
COLUMNS = {"question": "instruction", "human": "score"}
READ = [
    {"instruction": "Name a prime.", "response": "7", "score": "5", "note": "a, b"},
    {"instruction": "Name\nanother.", "response": '"8"', "score": "1.5", "note": ""},
]


def write(path, rows=ROWS):
    """A file in the format that its name ends with, or a folder if it ends with none."""
    if path.suffix:
        return files.write(path, rows)
    path.mkdir()
    files.write(path / "train.jsonl", rows)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ""])
def test_columns_and_a_rubric_are_for_every_format(suffix, tmp_path):
    path = write(tmp_path / f"data{suffix}")
    assert list(read_rows(path)) == ROWS
    assert [dict(sorted(row.items())) for row in read_rows(path, columns=COLUMNS)] == [
        dict(sorted(row.items())) for row in READ
    ]
    rubric = {"criterion": "Right?", "5": "yes"}
    assert [row["rubric"] for row in read_rows(path, rubric=rubric)] == [rubric, rubric]
    swapped = read_rows(path, columns={"human": "note", "note": "human"})
    assert [(row["human"], row["note"]) for row in swapped] == [("a, b", "5"), ("", "1.5")]
    over = read_rows(path, columns={"human": "note"}, rubric="Right?")
    assert [(row["note"], row["rubric"], "human" in row) for row in over] == [("5", "Right?", False)] * 1 + [
        ("1.5", "Right?", False)
    ]


def test_a_rubric_replaces_the_one_that_is_there(tmp_path):
    rows = [{**row, "rubric": "old"} for row in ROWS]
    for name in ("a.json", "a.parquet"):
        assert {row["rubric"] for row in read_rows(write(tmp_path / name, rows), rubric="new")} == {"new"}


def test_parquet_rows_stay_on_disk_and_keep_what_is_known_of_them(tmp_path):
    path = write(tmp_path / "train.parquet")
    assert isinstance(read_rows(path), Dataset) and read_rows(path).info.description == ""
    (tmp_path / "report.json").write_text('{"rationales": 4, "rows": 2}')
    assert read_rows(path).info.description.startswith("Rationales that a judge wrote itself: 4 for 2 prompts")
    (tmp_path / "report.json").write_text("[")  # of somebody else
    assert read_rows(path).info.description == ""


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('{"a": {"prompt": "x"}, "b": {"prompt": "y", "id": 7}}', ["a", 7]),
        ('{"data": [{"prompt": "x"}, {"prompt": "y"}]}', [None, None]),
        ('\ufeff{"prompt": "x"}\n{"prompt": "y"}\n', [None, None]),
        ('\ufeff[{"prompt": "x"}, {"prompt": "y"}]', [None, None]),
    ],
)
def test_public_json_files_of_other_shapes_are_read(text, ids, tmp_path):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    rows = read_rows(tmp_path / "a.json")
    assert [(row["prompt"], row.get("id")) for row in rows] == list(zip("xy", ids, strict=True))


def test_a_csv_file_may_have_long_cells(tmp_path):
    text = "word " * 40_000  # the csv module's limit is 131,072 characters
    path = write(tmp_path / "a.csv", [{"prompt": text, "score": "3"}])
    assert own_benchmark(path) == [{"prompt": text, "score": 3.0}]
    assert csv.field_size_limit() == 131_072  # left as it was


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "score,prompt,score\n1,a,2\n", r"a\.csv has several columns with the name 'score'\. Give each"),
        ("a.json", f'[{{"score": {"9" * 5000}}}]', r"a\.json is not valid JSON: Exceeds the limit .*digits"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, r"a\.jsonl, line 2, is not valid JSON: "),
        ("a.json", "[" * 100_000, r"a\.json is not valid JSON: "),
        ("a.json", '{"a": 1, "b": {}}', r"a\.json must hold a list of records, or an object of records by their ids; "),
        ("a.json", '{"data": [1]}', r"Record 0 of .*a\.json must be an object, found 1\."),
        ("a.jsonl", '{"prompt": "\\ud83d"}', r"a\.jsonl, line 1, holds '\\ud83d', half of a character, after "),
        ("a.json", '[{"prompt": "Right \\ud83d"}]', r"a\.json holds '\\ud83d', half of a character, after .*Right '\."),
        ("a.txt", "7", r"a\.txt must be a \.json, \.jsonl, \.csv or \.parquet file, found '\.txt'\.$"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes('[{"prompt": "caf\u00e9"}]'.encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.json must be in UTF-8: .* Save it in that encoding\.$"):
        read_rows(tmp_path / "a.json")


def test_a_source_without_a_name_and_a_split_of_a_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"^There is no data to read at '' \(the name is empty\)"):
        read_rows("")
    for read in (read_rows, own_benchmark):
        with pytest.raises(InputError, match=r"train\.jsonl is a file and has no splits, so split='test' has"):
            read(tmp_path / "train.jsonl", split="test")


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_columns_and_rubrics_that_do_not_fit_are_refused(suffix, tmp_path):
    path = write(tmp_path / f"a{suffix}")
    with pytest.raises(InputError, match=r"has no column 'answer', 'topic' to rename; found \['human', 'note', "):
        read_rows(path, columns={"topic": "a", "answer": "b"})
    with pytest.raises(InputError, match=r"gives several columns one name\."):
        read_rows(path, columns={"human": "score", "note": "score"})
    ready = write(tmp_path / f"b{suffix}", [{"prompt": "x", "score": 3}])
    with pytest.raises(InputError, match=r"have the columns \['prompt', 'score'\]: ready prompts, on which a rubric"):
        read_rows(ready, rubric="Right?")
    pairs = write(tmp_path / f"c{suffix}", [{"prompt": "x", "chosen": "a", "rejected": "b"}])
    assert read_rows(pairs, rubric="Right?")[0]["rubric"] == "Right?"


def test_one_record_is_read_like_many(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(ROWS[0]))
    record = read_record(tmp_path / "r.json", COLUMNS, "Right?")
    assert record == {**READ[0], "rubric": "Right?"}
    (tmp_path / "r.json").write_text(f'{{"score": {"9" * 5000}}}')
    with pytest.raises(InputError, match=r"r\.json is not valid JSON: Exceeds the limit"):
        read_record(tmp_path / "r.json")


def test_a_rubric_is_a_text_or_its_file(tmp_path):
    assert read_rubric("Right?") == "Right?" and read_rubric("Long. " * 1000) == "Long. " * 1000
    (tmp_path / "rubric.txt").write_text("Right?\n")
    (tmp_path / "rubric.json").write_text('{"criterion": "Right?", "5": "yes"}')
    assert read_rubric(str(tmp_path / "rubric.txt")) == "Right?"
    assert read_rubric(str(tmp_path / "rubric.json")) == {"criterion": "Right?", "5": "yes"}
    for text in ("[1]", '""'):
        (tmp_path / "rubric.json").write_text(text)
        with pytest.raises(InputError, match=r"rubric\.json must hold a rubric, text or a JSON object, found "):
            read_rubric(str(tmp_path / "rubric.json"))
