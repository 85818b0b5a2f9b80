"""The page of a run: what it shows, that strangers' text stays text, and that it needs nothing from elsewhere."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake import fake_judge, sure

from tract_trainer.cli.main import main
from tract_trainer.data.pairs import read_pairs
from tract_trainer.errors import InputError
from tract_trainer.evaluation.evaluate import evaluate, load_result
from tract_trainer.evaluation.page import listing, render_page, training_logs, write_page
from tract_trainer.evaluation.pictures import as_svg, result_figures, shortened

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

SVG = {"svg", "metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title", "defs", "style", "g", "path",
       "clipPath", "rect", "use", "text", "image"}  # fmt: skip


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

    @property
    def pictures(self):
        """The SVG of each picture, by its name."""
        found = {
            at["alt"]: at["src"].partition("data:image/svg+xml;base64,")[2] for tag, at in self.tags if tag == "img"
        }
        return {name: base64.b64decode(source).decode() for name, source in found.items()}


def judgment(gold=4.0, score=3.5, **changes):
    made = {
        "gold": gold,
        "group": 0,
        "record": {},
        "score": score,
        "probs": [0.0, 0.1, 0.3, 0.5, 0.1] if score is not None else [None] * 5,
        "std": 0.8,
        "mass": 1.0,
        "label": "4",
        "rationale": "It is right.",
        "reason": "" if score is not None else "None of 2 rationales has a score.",
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
        "calibration": {"error": 0.05, "error_by_chance": 0.02, "thresholds": [1, 2, 3, 4], "predicted": []},
        "judgments": [judgment(), judgment(2.0, None), judgment(1.0, 4.0)] if judgments is None else judgments,
    }
    return {**result, **changes}


def made_result(path, told="harmless"):
    """A result of an evaluation, with pictures, whose every text is `told`."""
    records = [{"prompt": f"{i}{told}", "score": 1.0 + i, "category": told, "group": i} for i in range(5)]
    judge = fake_judge(lambda prompt: [sure(3), sure(4)])
    result = evaluate(judge, records, told, path, 2, judge_name=told)
    texts = dict.fromkeys(("label", "rationale", "reason", "prompt"), told)
    rows = [{**row, **texts} for row in result["judgments"]]
    result["judge"][told] = told
    path.write_text(json.dumps({**result, "judgments": rows, "settings": {told: {told: told}}}))


def make_run(folder, told="harmless", name="evaluation"):
    """A run's folder whose every text is `told`."""
    for stage in ("stage1", "stage2"):
        (folder / stage).mkdir(parents=True)
        logged = [{"epoch": 0.5, "ce_loss": 2.0, "score_loss": 1.0}, {"epoch": told, "ce_loss": told, told: told}]
        (folder / stage / "trainer_state.json").write_text(json.dumps({"log_history": logged}))
    (folder / "cots").mkdir()
    (folder / "cots" / "report.json").write_text(json.dumps({"rows": 8, told: told, "more": {told: [told]}}))
    (folder / "settings.json").write_text(json.dumps({"model_name_or_path": told, "seed": 42, told: told}))
    made_result(folder / f"{name}.json", told)
    return folder


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """PNGs take seconds, and the page does not read them."""
    monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)


@pytest.fixture
def no_pictures(monkeypatch):
    """For results that are made up and have too little for a picture."""
    monkeypatch.setattr("tract_trainer.evaluation.page.result_figures", lambda result: {})


def page_of(path, **kwargs):
    return write_page(path, **kwargs).read_text(encoding="utf-8")


# Strangers' text


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)
        return write_page(make_run(tmp_path_factory.mktemp("run") / "harmless")).read_text(encoding="utf-8")


@pytest.mark.parametrize("told", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_makes_no_element_and_no_attribute(told, harmless, tmp_path, monkeypatch):
    monkeypatch.setattr("tract_trainer.evaluation.page.as_svg", lambda figure: b"")  # takes a second
    plain, hostile = Parsed(harmless), Parsed(page_of(make_run(tmp_path / "told", told)))
    assert len(hostile.pictures) == 6  # five of the result, and the training curves
    assert hostile.shape == plain.shape and not hostile.comments
    row = hostile.data[0]["judgments"][0]
    assert {row[key] for key in ("label", "rationale", "reason", "prompt")} == {told}
    assert len(told) > 300 or row["record"] == f"category {told}"
    shown = [" ".join(text.split()) for text in hostile.inside("dd")]
    assert " ".join(told.split()) in shown


def test_hostile_names_in_a_picture_are_text():
    subsets = {name: {"accuracy": 0.5, "n": 1} for name in HOSTILE}
    figures = {"n": 3, "unscored": 0, "accuracy": 0.5, "subsets": subsets}
    methods, rows = {"RAIL": figures, "decoded": figures}, [judgment()]
    pairs = {"methods": methods, "by_rationales": {}, "judgments": rows, "benchmark": {"name": "x"}}
    del pairs["judgments"][0]["gold"]
    for name in ("half \ud83d", *HOSTILE):
        picture = as_svg(result_figures({**pairs, "judge": {"name": name}})["accuracy"])
        root = ElementTree.fromstring(picture)
        assert {part.tag.rpartition("}")[2] for part in root.iter()} <= SVG
        assert shortened(name) in [part.text for part in root.iter() if part.tag.endswith("}text")]


def test_names_of_files_are_escaped(harmless, tmp_path):
    name = "<img src=x onerror=alert(1)>{{ 7*7 }}"
    page = page_of(make_run(tmp_path / name, name=name))
    assert Parsed(page).shape == Parsed(harmless).shape
    assert "{{ 7*7 }}" in page and "<img src=x" not in page


@pytest.mark.usefixtures("no_pictures")
def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_result([judgment(prompt="half \ud83d")])))
    assert Parsed(page_of(tmp_path)).data[0]["judgments"][0]["prompt"] == "half \ud83d"  # escaped in JSON


def test_only_the_pages_own_script_and_style_may_run_and_nothing_may_be_loaded(harmless):
    page, parsed = harmless, Parsed(harmless)
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
    assert links and all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in links)
    assert not any(name.startswith("on") or name == "style" for _, at in parsed.tags for name in at)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
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
    summaries = [text.replace("\0", "\ufffd") for text in found.inside("summary")]
    assert summaries[: len(HOSTILE)] == excerpts
    assert summaries[len(HOSTILE)] == "unscored: None of 2 rationales has a score."
    assert "17 of 17 shown; 1 unscored." in found.inside("p")
    assert ("th", "descending") in [(tag, at.get("aria-sort")) for tag, at in found.tags]

    found = shown("sort=number&order=descending&unscored=first&filter=r&result=length")
    numbers = [text for text in found.inside("th") if text.isdigit()]
    assert numbers[0] == "1" and numbers[1:] == sorted(numbers[1:], key=int, reverse=True)
    assert f"{len(numbers)} of {len(numbers)} shown, of 17 judgments; 1 unscored." in found.inside("p")


# What it shows


def test_the_verdict_is_first_and_the_judgments_before_the_figures(tmp_path):
    made_result(tmp_path / "r.json")
    page = page_of(tmp_path / "r.json")
    places = [page.index(part) for part in ("<h1>", "RAIL, the expected score, has r = -", 'id="list"', 'id="figures"')]
    assert places == sorted(places)
    # RAIL is 3.5 for gold 1 to 5: errors 2.5, 1.5, .5, .5, 1.5, and the mean gold score is 3.
    assert "RMSE = 1.500" in page and "no better than the mean gold score for every record (RMSE = 1.414)." in page


def test_a_page_of_unscored_records_says_so_first(tmp_path):
    judge = fake_judge(lambda prompt: [None])
    evaluate(judge, [{"prompt": "a", "score": 1.0}, {"prompt": "b", "score": 2.0}], "mine", tmp_path / "r.json")
    shown = " ".join(Parsed(page_of(tmp_path / "r.json")).inside("p"))
    assert "No score: all 2 records are unscored, so there are no figures. The first reason: None of 1 rat" in shown


@pytest.mark.usefixtures("no_pictures")
def test_figures_stand_with_their_interval_and_their_worst_case(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_result()))
    page = page_of(tmp_path / "result.json")
    rows = dict(re.findall(r'<th scope="row" dir="auto">(.*?)</th>(.*)</tr>', page))
    assert rows == {
        "Pearson": "<td>.500 [.40, .60]</td><td>-</td>",
        "Pearson, unscored at worst": "<td>.250</td><td>-</td>",
        "RMSE": "<td>-</td><td>1.250</td>",
        "unscored": "<td>1</td><td>0</td>",
    }
    assert "Calibration error of the distribution: .050; a calibrated judge would have .020 by chance." in page
    assert "<bdi>judge</bdi> on <bdi>mt_bench</bdi>" in page


def test_figures_of_subsets_of_pairs_are_in_the_table(tmp_path):
    pairs = [{"instruction": "Q", "chosen": "a 4", "rejected": "b 2", "subset": "chat"}] * 3
    judge = fake_judge(lambda prompt: [sure(4 if "a 4" in prompt else 2)])
    evaluate(judge, read_pairs(pairs), "pairs", tmp_path / "pairs.json")
    page = page_of(tmp_path / "pairs.json")
    assert re.search(r'<th scope="row" dir="auto">subset chat</th><td>1\.000 \[', page)
    assert "RAIL, the expected score, has accuracy = 1.000" in page and list(Parsed(page).pictures) == ["accuracy"]


def test_the_pictures_are_drawn_from_the_result_and_the_same_each_time(tmp_path):
    made_result(tmp_path / "r.json", "judge of $x^{$ <&>")
    first, second = (Parsed(page_of(tmp_path / "r.json")).pictures for _ in range(2))
    assert list(first) == ["predictions", "confusion", "reliability", "selective", "rationales"] and first == second
    for picture in first.values():
        assert ">judge of $x^{$ &lt;&amp;&gt;</text>" in picture and ">RAIL: r = -, RMSE = 1.500" in picture


def test_a_folder_with_next_to_nothing_says_what_is_missing(tmp_path):
    (tmp_path / "settings.json").write_text('{"seed": 42, "lr": 1e-05, "names": ["é"], "strict": true, "none": null}')
    page = page_of(tmp_path)
    assert "There is no result here." in page and "<script" not in page  # there is nothing to list
    assert Parsed(page).inside("dd") == ["42", "1e-05", '["é"]', "true"]


@pytest.mark.usefixtures("no_pictures")
def test_several_results_are_shown_and_can_be_chosen(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(make_result()))
    (tmp_path / "records.json").write_text('[{"score": 1}]')  # nothing of a run
    parsed = Parsed(page_of(tmp_path))
    assert parsed.inside("option") == ["a", "b"] and len(parsed.data) == 2


@pytest.mark.usefixtures("no_pictures")
def test_the_page_lies_in_the_folder_or_beside_the_result(tmp_path):
    (tmp_path / "flask.json").write_text(json.dumps(make_result()))
    assert write_page(tmp_path / "flask.json") == tmp_path / "flask.html"
    assert write_page(tmp_path) == tmp_path / "report.html"
    assert write_page(tmp_path, tmp_path / "new" / "x.html") == tmp_path / "new" / "x.html"


@pytest.mark.usefixtures("no_pictures")
def test_only_a_page_is_replaced(tmp_path, capsys):
    result, mine = tmp_path / "r.json", tmp_path / "mine.html"
    result.write_text(json.dumps(make_result()))
    mine.write_text("<p>My page.</p>")
    before = result.read_bytes()
    for flags in ([], ["--overwrite", "true"]):
        assert main(["report", str(result), "--output", str(result), *flags]) == 2
        assert "The page would replace the result" in capsys.readouterr().err
    assert main(["report", str(result), "--output", str(mine)]) == 2
    assert "mine.html exists, and tract did not write it. Give another place" in capsys.readouterr().err
    assert mine.read_text() == "<p>My page.</p>" and result.read_bytes() == before
    for flags in (["--overwrite", "true"], []):  # from then on it is a page
        assert main(["report", str(result), "--output", str(mine), *flags]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "r.json"]


def test_templates_are_package_data():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.package_data"]["tract_trainer.evaluation"] == "templates/*"
    folder = ROOT / "tract_trainer" / "evaluation" / "templates"
    assert {path.name for path in folder.iterdir()} == {"page.html.jinja", "page.css", "page.js"}


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
    assert found[0]["record"] == "id 7, subset chat, side chosen"


def test_bars_go_from_the_lowest_to_the_highest_score_and_the_nearest_to_gold_are_marked():
    config = {"score_labels": ["C", "A", "B"], "score_values": [0, 1, 0.5]}
    rows = [judgment(0.75, probs=[0.2, 0.7, 0.1]), judgment(0.1, probs=[None] * 3)]
    for row in rows:
        row["rationales"] = [{**row["rationales"][0], "probs": None}]
    found = listing({**make_result(), "judge": {"config": config}, "judgments": rows})
    assert found["labels"] == ["C", "B", "A"]
    assert [row["probs"] for row in found["judgments"]] == [[0.2, 0.1, 0.7], []]
    assert [row["nearest"] for row in found["judgments"]] == [[1, 2], [0]]


# Training logs


def test_the_log_is_that_of_the_end_of_training_or_else_of_the_last_checkpoint(tmp_path):
    for step in (20, 100, 99):
        checkpoint = tmp_path / "stage1" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step}]}))
    assert training_logs(tmp_path) == {"stage1": [{"step": 100}]}
    assert training_logs(tmp_path / "stage1") == {"training": [{"step": 100}]}
    (tmp_path / "stage1" / "trainer_state.json").write_text('{"log_history": [{"step": 101}]}')
    assert training_logs(tmp_path) == {"stage1": [{"step": 101}]}


# Mistakes


@pytest.mark.parametrize("version", [None, 2, "1"])
def test_another_schema_is_one_clear_message(version, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(make_result(schema_version=version)))
    message = rf"result.json has schema_version {version!r}, and this version of tract-trainer reads 1. Run tract eval"
    for path in (tmp_path, tmp_path / "result.json"):
        with pytest.raises(InputError, match=message):
            render_page(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "result.json is not valid JSON: Expecting"),
        ("[" * 100_000, "result.json is not valid JSON: maximum recursion depth"),
        ("[1]", "result.json is not the result of an evaluation: it has no schema_version"),
        (
            '{"schema_version": 1, "judge": {}, "settings": {}, "methods": {}, "by_rationales": {}}',
            r"result.json is no complete result, it lacks \['benchmark', 'judgments'\]",
        ),
    ],
)
def test_a_file_that_is_no_result_is_named(content, message, tmp_path):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_result(tmp_path / "result.json")


def test_nothing_of_a_run_is_a_mistake(tmp_path, capsys):
    with pytest.raises(InputError, match=r"There is no run at '.*nowhere'. Give a folder of tract run"):
        render_page(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds nothing of a run: no settings\.json, no stage with"):
        render_page(tmp_path)
    assert main(["report"]) == 2
    assert capsys.readouterr().err == (
        "tract report: error: Expected the folder of a run, or the JSON file of a result, got [].\n"
    )


def test_the_command_writes_the_page(tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"seed": 42}')
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    assert f"{tmp_path / 'page.html'}: 0.0 MB" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
