"""The page of a run: what it shows, that strangers' text stays text, and that it needs nothing from elsewhere."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tract_trainer.cli.main import main
from tract_trainer.errors import InputError
from tract_trainer.evaluation.artifacts import number, read_artifacts, text
from tract_trainer.evaluation.charts import training_curves
from tract_trainer.evaluation.page import listing, write_page

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onfocus=document.title='owned' autofocus x='",
    "</title></style></textarea><body onload=document.title='owned'>",
    "{{ 7*7 }}{% if %}{#",
    "<!--<script>",
    "-->",
    "]]>",
    "line\u2028and\u2029paragraph",
    "x" * 5000,
    "\u202e\u05e9\u05dc\u05d5\u05dd right to left",
    "nul\0 and bell\a",
    "🧑\u200d⚖️",
    "&lt;&#0;&amp;",
    "\\u003c\\",
]


class Parsed(HTMLParser):
    """The start tags of a page with their attributes, and the text inside each kind of element."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts, self.comments = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data):
        self.comments.append(data)

    def inside(self, tag):
        return [data for name, data in self.texts if name == tag]

    @property
    def shape(self):
        """Tags and the names of their attributes, with the values that a browser acts on."""
        active = ("class", "id", "href", "type", "role", "tabindex", "for", "http-equiv", "dir")
        return [(tag, [(name, value if name in active else "") for name, value in at.items()]) for tag, at in self.tags]

    @property
    def data(self):
        (found,) = (data for data in self.inside("script") if data.startswith('{"results"'))
        return json.loads(found)["results"]


def judgment(gold=4.0, score=3.5, **changes):
    made = {
        "gold": gold,
        "score": score,
        "probs": [0.0, 0.1, 0.3, 0.5, 0.1] if score is not None else [None] * 5,
        "std": 0.8,
        "mass": 1.0,
        "label": "4",
        "rationale": "It is right.",
        "reason": "" if score is not None else "None of 2 rationales came to a score.",
        "prompt": "Rate it.",
        "rationales": [{"label": "4", "probs": [0.0, 0.1, 0.3, 0.5, 0.1], "num_tokens": 12, "forced": False}] * 2,
    }
    return {**made, **changes}


def make_result(judgments=None, **changes):
    figures = {"n": 3, "unscored": 1, "pearson": 0.5, "pearson_ci": [0.4, 0.6], "pearson_worst": 0.25, "mass": 0.99}
    result = {
        "schema_version": 1,
        "tract_trainer_version": "0.1.0",
        "judge": {"name": "judge", "config": {"score_labels": list("12345"), "score_values": [1, 2, 3, 4, 5]}},
        "benchmark": {"name": "mt_bench", "records": 3, "digest": "d"},
        "settings": {"num_cots": 2, "seed": 42},
        "methods": {"RAIL": figures, "decoded": {"n": 3, "unscored": 0, "pearson": None, "rmse": 1.25}},
        "by_rationales": {"1": {"RAIL": figures}},
        "calibration": {"error": 0.05, "error_by_chance": 0.02},
        "judgments": [judgment(), judgment(2.0, None), judgment(1.0, 4.0)] if judgments is None else judgments,
    }
    return {**result, **changes}


def make_run(folder, told="harmless", name="evaluation"):
    """A run's folder whose every text is `told`."""
    for stage in ("stage1", "stage2"):
        (folder / stage).mkdir(parents=True)
        logged = [{"epoch": 0.5, "ce_loss": 2.0, "score_loss": 1.0}, {"epoch": told, "ce_loss": told, told: told}]
        (folder / stage / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
    (folder / "cots").mkdir()
    (folder / "cots" / "report.json").write_text(json.dumps({"rows": 8, told: told, "more": {told: [told]}}))
    (folder / "settings.json").write_text(json.dumps({"model_name_or_path": told, "seed": 42, told: told}))
    texts = dict.fromkeys(("label", "rationale", "reason", "prompt"), told)
    row = judgment(**texts, rationales=[{"label": told, "probs": None, "num_tokens": 1, "forced": True}] * 2)
    result = make_result(
        [row, judgment(1.0, 4.0, prompt=[{"role": told, "content": told}])],
        judge={"name": told, told: told, "config": {"score_labels": [told] * 5, "score_values": [1, 2, 3, 4, 5]}},
        benchmark={"name": told},
        settings={told: {told: told}},
        methods={told: {"n": told, "pearson": told, f"a {told}": told}, "none": None},
        by_rationales={told: {told: {"pearson": 0.5}}},
    )
    (folder / f"{name}.json").write_text(json.dumps(result))
    (folder / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n picture")
    return folder


def page_of(path, **kwargs):
    return write_page(path, **kwargs).read_text(encoding="utf-8")


# Strangers' text


@pytest.mark.parametrize("told", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_makes_no_element_and_no_attribute(told, tmp_path):
    harmless, hostile = (Parsed(page_of(make_run(tmp_path / name, name))) for name in ("harmless", "hostile"))
    assert harmless.shape == hostile.shape  # the comparison itself holds
    hostile = Parsed(page_of(make_run(tmp_path / "told", told)))
    assert hostile.shape == harmless.shape and not hostile.comments
    row, other = hostile.data[0]["judgments"]
    assert {row[key] for key in ("label", "rationale", "reason", "prompt")} == {told}
    assert other["prompt"] == f"{told}:\n{told}"
    assert hostile.data[0]["scale"][0] == {"label": told, "value": 1}
    shown = [" ".join(text.split()) for text in hostile.inside("dd")]
    assert " ".join(told.split()) in shown


def test_names_of_files_are_escaped(tmp_path):
    name = "<img src=x onerror=alert(1)>{{ 7*7 }}"
    plain, named = (make_run(tmp_path / name, name=name) for name in ("evaluation", name))
    page = page_of(named)
    assert Parsed(page).shape == Parsed(page_of(plain)).shape
    assert "{{ 7*7 }}" in page and "<img src=x" not in page


def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path):
    page = page_of(make_run(tmp_path / "run", "half \ud83d"))
    assert Parsed(page).data[0]["judgments"][0]["prompt"] == "half \ud83d"  # escaped in JSON


def test_only_the_pages_own_script_and_style_may_run_and_nothing_may_be_loaded(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    parsed = Parsed(page)
    (policy,) = (at["content"] for tag, at in parsed.tags if at.get("http-equiv") == "Content-Security-Policy")
    hashes = {}
    for tag in ("style", "script"):
        (source,) = (data for data in parsed.inside(tag) if not data.startswith('{"results"'))
        hashes[tag] = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"https?:|//[a-z]|@import|url\(|innerHTML|eval\(|document\.write", page)
    links = [at[name] for _, at in parsed.tags for name in ("src", "href", "action", "srcset", "data") if name in at]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not any(name.startswith("on") or name == "style" for _, at in parsed.tags for name in at)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_in_a_browser_the_list_sorts_and_hostile_text_is_text(tmp_path):
    rows = [judgment(3.0, 1.0 + i / 10, rationale=told, prompt=told) for i, told in enumerate(HOSTILE)]
    (tmp_path / "result.json").write_text(json.dumps(make_result([judgment(2.0, None), *rows])))
    page = write_page(tmp_path / "result.json")

    def shown(hash_):
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
        done = subprocess.run(
            ["chromium", *options, f"file://{page}#{hash_}"], capture_output=True, timeout=1200, check=True
        )
        assert b"CONSOLE" not in done.stderr, done.stderr.decode()
        return Parsed(done.stdout.decode())

    found = shown("sort=error")
    assert found.inside("title") == ["result.json: judge report"]  # no text has run
    first = ["2", *(str(i + 2) for i in range(1, len(HOSTILE)))]  # the error falls with i; the unscored one is last
    numbers = [text for text in found.inside("th") if text.isdigit()]
    assert numbers == [*first, "1"]
    excerpts = [told[:300].replace("\0", "\ufffd") for told in HOSTILE]
    summaries = found.inside("summary")[-len(HOSTILE) - 1 :]
    assert [text.replace("\0", "\ufffd") for text in summaries[:-1]] == excerpts
    assert "17 of 17 shown; 1 unscored." in found.inside("p")
    assert ("th", "descending") in [(tag, at.get("aria-sort")) for tag, at in found.tags]

    found = shown("sort=number&order=descending&unscored=first&filter=r&result=length")
    numbers = [text for text in found.inside("th") if text.isdigit()]
    assert numbers[0] == "1" and numbers[1:] == sorted(numbers[1:], key=int, reverse=True)


# What it shows


def test_figures_stand_with_their_interval_and_their_worst_case(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_result()))
    page = page_of(tmp_path / "result.json")
    rail = re.search(r'<th scope="row" dir="auto">RAIL</th>(.*)</tr>', page)[1]
    # Heads: Pearson, RMSE, mass, n, unscored; RAIL has no RMSE, and no score is missing from decoded.
    assert rail == (
        "<td>.500<small>[.40, .60]</small><small>worst .250</small></td><td>-</td><td>.990</td><td>3</td><td>1</td>"
    )
    decoded = re.search(r'<th scope="row" dir="auto">decoded</th>(.*)</tr>', page)[1]
    assert decoded == "<td>-</td><td>1.250</td><td>-</td><td>3</td><td>0</td>"
    assert "Calibration error: <strong>.050</strong>; a calibrated judge would have .020 by chance." in page
    assert "3 judgments of <bdi>judge</bdi> on <bdi>mt_bench</bdi>" in page


def test_figures_of_subsets_of_pairs_have_a_table_of_their_own(tmp_path):
    figures = {"accuracy": 0.75, "n": 4, "ties": 1, "unscored": 0, "subsets": {"chat": {"accuracy": 0.5, "n": 2}}}
    (tmp_path / "pairs.json").write_text(json.dumps(make_result([], methods={"RAIL": figures})))
    page = page_of(tmp_path / "pairs.json")
    assert "<summary>By subsets</summary>" in page
    assert '<th scope="row" dir="auto">RAIL: chat</th><td>.500</td><td>2</td></tr>' in page
    assert '<th scope="col">subsets</th>' not in page


def test_pictures_are_in_the_page(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    (picture,) = (at["src"] for tag, at in Parsed(page).tags if tag == "img")
    assert base64.b64decode(picture.partition(",")[2]) == (tmp_path / "run" / "evaluation.png").read_bytes()


def test_a_folder_with_next_to_nothing_says_what_is_missing(tmp_path):
    (tmp_path / "result.json").write_text('{"schema_version": 1, "methods": null, "judgments": null}')
    page = page_of(tmp_path)
    for said in ("holds no figures", "no training curves", "no report on rationales", "no settings", "no judgments"):
        assert said in page
    assert "<script" not in page  # there is nothing to list


def test_several_results_are_shown_and_can_be_chosen(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(make_result()))
    (tmp_path / "records.json").write_text('[{"score": 1}]')  # nothing of a run
    parsed = Parsed(page_of(tmp_path))
    assert parsed.inside("option") == ["a", "b"] and len(parsed.data) == 2


def test_the_page_lies_in_the_folder_or_beside_the_result(tmp_path):
    (tmp_path / "flask.json").write_text(json.dumps(make_result()))
    assert write_page(tmp_path / "flask.json") == tmp_path / "flask.html"
    assert write_page(tmp_path) == tmp_path / "report.html"
    assert write_page(tmp_path, tmp_path / "new" / "x.html") == tmp_path / "new" / "x.html"


def test_templates_are_package_data():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    data = setup["options.package_data"]
    for folder in (ROOT / "tract_trainer").glob("*/templates"):
        assert data[f"tract_trainer.{folder.parent.name}"] == "templates/*"


# The list


def test_the_error_is_the_distance_from_gold_and_of_pairs_how_far_they_are_the_wrong_way_round():
    found = listing({**make_result(), "judgments": [judgment(4.0, 3.5), judgment(1.0, 4.0), judgment(2.0, None)]})
    assert [row["error"] for row in found["judgments"]] == [0.5, 3.0, None]
    sides = [{"id": "7", "subset": "chat", "side": side} for side in ("chosen", "rejected")]
    pairs = [judgment(None, score, **side) for score, side in zip((2.0, 3.5, 4.0, None), sides * 2, strict=True)]
    for pair in pairs:
        del pair["gold"]
    found = listing({**make_result(), "judgments": pairs})["judgments"]
    assert [row["error"] for row in found] == [1.5, 1.5, None, None]
    assert found[0]["place"] == "id 7, subset chat, side chosen"


def test_numbers_that_json_has_no_word_for_are_not_known():
    assert [number(value) for value in (1, 0.5, -2)] == [1.0, 0.5, -2.0]
    for value in (math.nan, math.inf, -math.inf, 10**400, 1e301, True, "1", None, [1]):
        assert number(value) is None
    found = listing(
        {**make_result(), "judgments": [{"score": math.nan, "probs": [0.123456, None]}, {"probs": [1 / 3]}]}
    )
    assert [row["probs"] for row in found["judgments"]] == [[], [0.3333]]
    assert json.dumps(found, allow_nan=False)


def test_messages_are_read_as_text():
    messages = [{"role": "system", "content": "Be strict."}, {"role": "user", "content": "Rate it."}]
    assert text(messages) == "system:\nBe strict.\n\nuser:\nRate it."
    assert [text(value) for value in (None, 1e-05, ["é"], {"a": None})] == ["", "1e-05", '["é"]', '{"a": null}']


# Curves


def test_a_line_goes_from_corner_to_corner():
    history = [{"epoch": 0, "ce_loss": 1.0}, {"epoch": 1, "eval_ce_loss": 2.5}, {"epoch": 2, "ce_loss": 3.0}]
    (chart,) = training_curves({"stage1": history})
    line, held_out = chart.series
    # The plot is 48..330 wide and 184..8 high; half way in epochs is 189, three quarters of the way up is 52.
    assert line.line == "M48.0 184.0L330.0 8.0" and line.last == "3"
    assert (held_out.name, held_out.line, held_out.dots) == ("stage1, held out", "M189.0 52.0", "M189.0 52.0h0")
    assert chart.y.label == "nats per token" and (48.0, "0") in chart.x.ticks


def test_a_loss_that_falls_far_has_a_log_scale():
    history = [{"epoch": epoch, "score_loss": loss} for epoch, loss in enumerate((100.0, 10.0, 1.0))]
    (chart,) = training_curves({"stage1": history})
    assert chart.series[0].line == "M48.0 8.0L189.0 96.0L330.0 184.0"  # equal steps
    assert chart.y.label == "mean over scores (log scale)" and (96.0, "10") in chart.y.ticks


def test_a_line_keeps_its_style_where_others_are_missing():
    both = {"epoch": 1, "ce_loss": 1.0, "eval_ce_loss": 1.0}
    charts = training_curves({"stage1": [both], "stage2": [both, {"epoch": 1, "score_loss": 1.0}]})
    assert [[(line.name, line.style) for line in chart.series] for chart in charts] == [
        [("stage1", 0), ("stage1, held out", 1), ("stage2", 2), ("stage2, held out", 3)],
        [("stage2", 2)],
    ]


def test_what_is_no_number_is_not_drawn():
    history = [{"epoch": 1, "ce_loss": loss} for loss in ("<b>", None, math.nan, math.inf)]
    assert training_curves({"stage1": history}) == []


def test_the_log_is_that_of_the_end_of_training_or_else_of_the_last_checkpoint(tmp_path):
    for step in (20, 100, 99):
        checkpoint = tmp_path / "stage1" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step}]}))
    assert read_artifacts(tmp_path).histories == {"stage1": [{"step": 100}]}
    assert read_artifacts(tmp_path / "stage1").histories == {"training": [{"step": 100}]}
    (tmp_path / "stage1" / "trainer_state.json").write_text('{"log_history": [{"step": 101}]}')
    assert read_artifacts(tmp_path).histories == {"stage1": [{"step": 101}]}


# Mistakes


@pytest.mark.parametrize("version", [None, 2, "1"])
def test_another_schema_is_one_clear_message(version, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_result(schema_version=version)))
    message = rf"result.json has schema_version {version!r}, and this version of tract-trainer reads 1. Run tract eval"
    for path in (tmp_path, tmp_path / "result.json"):
        with pytest.raises(InputError, match=message):
            read_artifacts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "result.json is not valid JSON: Expecting"),
        ("[" * 100_000, "result.json is not valid JSON: maximum recursion depth"),
        ("[1]", "result.json is not the result of an evaluation: it has no schema_version"),
        ('{"schema_version": 1, "judgments": {}}', "'judgments' must be a JSON array, found dict"),
        ('{"schema_version": 1, "methods": "x"}', "'methods' must be a JSON object, found str"),
        ('{"schema_version": 1, "judgments": [1]}', "each of the 'judgments' must be a JSON object"),
    ],
)
def test_a_file_that_is_no_result_is_named(content, message, tmp_path):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_artifacts(tmp_path / "result.json")


def test_nothing_of_a_run_is_a_mistake(tmp_path, capsys):
    with pytest.raises(InputError, match=r"There is no run at '.*nowhere'. Give the folder of tract run"):
        read_artifacts(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds nothing of a run: no settings\.json, no stage with"):
        read_artifacts(tmp_path)
    assert main(["report"]) == 2
    assert capsys.readouterr().err == (
        "tract report: error: Expected the folder of a run, or the JSON file of a result, got [].\n"
    )


def test_the_command_writes_the_page(tmp_path, capsys):
    make_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    assert f"{tmp_path / 'page.html'}: 0.0 MB" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
