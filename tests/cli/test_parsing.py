"""Settings from the command line and from YAML: what is refused, in one line, and what --help shows."""

import pytest

from tract_trainer import Judge, RegressionAwareSFTConfig
from tract_trainer.cli.arguments import JudgeArguments
from tract_trainer.cli.main import main
from tract_trainer.cli.parsing import parse

CPU = ["--use_cpu", "true", "--bf16", "false"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "-1"], "seed must be between 0 and 4294967295, got -1."),
        (["--seed", str(2**32)], f"seed must be between 0 and 4294967295, got {2**32}."),
        (["--data_seed", "-1"], "data_seed must be between 0 and 4294967295, got -1."),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be at least 1, got 0."),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be at least 1, got 0."),
        (["--learning_rate", "nan"], "learning_rate must be at least 0, got nan."),
        (["--learning_rate", "inf"], "learning_rate must be at least 0, got inf."),
        (["--lora_dropout", "2"], "lora_dropout must be between 0 and 1, got 2.0."),
        (["--lora_r", "0"], "lora_r must be at least 1, got 0."),
        (["--max_length", "0"], "max_length must be at least 1, got 0."),
        (["--max_records", "0"], "max_records must be at least 1, got 0."),
        (["--data", ""], "data is empty. Give a file, a folder or a name, or leave it out."),
        (["--score_prefix", "Score\udcff: "], r"score_prefix must be text in UTF-8, found 'Score\udcff: '."),
        (["--scale", "10"], "Expected LOW:HIGH or LOW:HIGH:STEP, e.g. 1:10 or 1:5:0.5; found '10'."),
        (["--scale"], "Expected LOW:HIGH or LOW:HIGH:STEP, e.g. 1:10 or 1:5:0.5; found ''."),
        (["--score_labels", "No", "Yes"], "The labels ['No', 'Yes'] are not all numbers"),
        (["--columns", "[1]"], 'columns must be a mapping or JSON such as {"human": "score"}, got \'[1]\'.'),
        (["--columns", "[" * 99_999], "columns must be a mapping or JSON such as"),
        (
            ["--columns", '{"a": 1}'],
            'columns must map old names to new ones, e.g. {"human": "score"}, got \'{"a": 1}\'.',
        ),
    ],
)
def test_a_value_that_a_library_would_refuse_later_is_refused_now(refused, tmp_path, flags, message):
    said = refused("sft", "--output_dir", tmp_path / "judge", *CPU, *flags)
    assert message in said and "\n" not in said
    assert not (tmp_path / "judge").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "0"], "batch_size must be at least 1, got 0."),
        (["--num_cots", "-1"], "num_cots must be at least 0, got -1."),
        (["--model", ""], "model is empty."),
        (["--base_url", "http://localhost:http/v1"], "base_url must be an address such as http://localhost:8000/v1, "),
        (["--base_url", "http://localhost:99999/v1"], "base_url must be an address such as"),
        (["--base_url", "localhost:8000"], "base_url must be an address such as"),
        (["--base_url", "http://[::1/v1"], "base_url must be an address such as"),
        (["--model_kwargs", '{"revision": "v1"}'], "model_kwargs must not hold a revision. Give it as --revision."),
        (["--score_values", "1", "2"], "score_values are the values of score_labels. Give --score_labels, too."),
        (["--chat_template_kwargs", "no"], "chat_template_kwargs must be a mapping or JSON such as"),
    ],
)
def test_settings_of_a_judge_that_cannot_be_are_refused(refused, flags, message):
    engine = ["--engine", "server"] if "--base_url" in flags else []
    assert message in refused("judge", *engine, *flags)


@pytest.mark.parametrize(
    "url", ["http://me:sesame@host:99999/v1", "me:sesame@host/v1?key=sesame", "http://host:0?sesame"]
)
def test_no_message_about_a_setting_holds_a_password(refused, tmp_path, url):
    (tmp_path / "x.yaml").write_text(f"engine: {url}")
    for flags in (
        ["--engine", "server", "--base_url", url],
        ["--model_kwargs", f'{{"base_url": "http://{url.removeprefix("http://")}"'],
        [f"--base-urls=http://{url.removeprefix('http://')}"],
        *([["--config", tmp_path / "x.yaml"]] if "://" in url else []),
    ):
        said = refused("judge", *flags)
        assert "host" in said and "sesame" not in said, said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3: a\nmodel: b", "x.yaml must have names of settings as keys, found 3."),
        ("true: a", "x.yaml must have names of settings as keys, found True."),
        ("[a]", "x.yaml must contain a YAML mapping."),
        ("model: [", "x.yaml"),
        ("model: " + "[" * 20_000, "maximum recursion depth exceeded"),
        (f"seed: {'9' * 5000}", "Exceeds the limit"),
        ('score_prefix: "\\ud83d"', "score_prefix must be text in UTF-8"),
        ("seed: -1", "seed must be between 0 and 4294967295, got -1."),
        ("unfinished: froce", "unfinished must be one of unscored, force, got 'froce'."),
        (
            "score_labels: [No, Yes]",
            "Labels must be text, found [False, True]. YAML reads Yes and No as truth values, ",
        ),
    ],
)
def test_a_yaml_that_cannot_be_used_is_one_line(refused, tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "r.json").write_text('{"prompt": "x"}')
    said = refused("judge", "--config", tmp_path / "x.yaml", "--record", tmp_path / "r.json", "--model", tmp_path)
    assert message in said and "Traceback" not in said


def test_truth_values_as_labels_are_refused_in_training_too(refused, tmp_path):
    (tmp_path / "x.yaml").write_text("score_labels: [No, Yes]\nscore_values: [0, 1]\nscore: true\n")
    said = refused("sft", "--config", tmp_path / "x.yaml", "--output_dir", tmp_path / "judge", *CPU)
    assert 'quote them, e.g. score_labels: ["No", "Yes"].' in said


def test_the_yaml_may_be_given_with_an_equals_sign(refused, tmp_path):
    (tmp_path / "x.yaml").write_text("modle: judge\n")
    assert "'--modle' is not a setting of tract judge." in refused("judge", f"--config={tmp_path / 'x.yaml'}")


def shown(capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "sft", "inspect", "grpo"])
def test_help_shows_the_settings_of_the_command_and_help_all_those_of_trl_too(capsys, command):
    few, everything = shown(capsys, command, "--help"), shown(capsys, command, "--help-all")
    of_command = "--score_likelihood_weight" if command == "grpo" else "--score_labels"
    for name in ("--columns", of_command, "--score_loss_weight", "--model_name_or_path", "--learning_rate"):
        assert f"  {name} " in few and f"  {name} " in everything
    for name in ("--adam_beta1", "--hub_strategy", "--bnb_4bit_quant_type"):
        assert name not in few and f"  {name} " in everything
    config = "GRPOConfig" if command == "grpo" else "SFTConfig"
    assert f"--help-all shows all settings of TRL's {config} and ModelConfig" in " ".join(few.split())
    assert few.count("\n") < 200 < everything.count("\n")
    assert few.index("\ndata:") < few.index("\noptions:")


def test_a_setting_that_help_does_not_show_can_be_set(refused, tmp_path):
    said = refused("sft", "--output_dir", tmp_path / "x", *CPU, "--adam_beta1", "0.8")
    assert "--model_name_or_path is missing" in said


def test_arguments_of_the_chat_template_reach_training_and_judge(tmp_path, seed_folder):
    given = ["--chat_template_kwargs", '{"enable_thinking": false}']
    (args,) = parse("sft", ["--output_dir", str(tmp_path), *CPU, *given], RegressionAwareSFTConfig)
    assert args.template_kwargs == {"enable_thinking": False}
    (args,) = parse("judge", ["--score_labels", "1", "2", "3", *given], JudgeArguments)
    assert Judge.from_pretrained(seed_folder, **args.loading).config.chat_template_kwargs == {"enable_thinking": False}
