"""A judge as the reward of TRL's GRPO trainer."""

import math

import pytest
from datasets import Dataset
from fake import fake_judge, sure
from tiny import make_model, make_tokenizer, train_judge
from trl import GRPOConfig, GRPOTrainer

from tract_trainer import Judge


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "max_position_embeddings": 2048}
    model = make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)
    trainer = train_judge(tmp_path_factory.mktemp("judge"), steps=20, model=model)  # a reward may be forced
    return Judge.from_model(trainer.model, tokenizer, trainer.judge_config)


def test_rewards_are_the_scores_of_the_records(judge):
    reward = judge.as_reward_func(max_new_tokens=40)
    columns = {"rubric": ["right?", "kind?"], "reference": ["7", None], "trainer_state": None}
    found = reward(prompts=["Name a prime.", "Greet me."], completions=["7", "Hello"], **columns)
    records = [
        {"instruction": "Name a prime.", "response": "7", "rubric": "right?", "reference": "7"},
        {"instruction": "Greet me.", "response": "Hello", "rubric": "kind?"},
    ]
    expected = [j.score for j in judge.score(records, max_new_tokens=40, unfinished="force")]
    assert found == pytest.approx(expected)
    assert all(math.isfinite(score) for score in found)


def test_a_conversation_is_judged_as_its_text(judge):
    reward = judge.as_reward_func("right?", max_new_tokens=40)
    turns = [{"role": "user", "content": "Name a prime."}]
    plain = reward(prompts=["Name a prime."], completions=["7"])
    assert reward(prompts=[turns], completions=[[{"role": "assistant", "content": "7"}]]) == pytest.approx(plain)
    more = [*turns, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Again."}]
    written = "user: Name a prime.\n\nassistant: 4\n\nuser: Again."
    assert reward(prompts=[more], completions=["7"]) == pytest.approx(reward(prompts=[written], completions=["7"]))


def test_a_missing_rubric_is_named(judge):
    with pytest.raises(ValueError, match=r"has no rubric to go by.*\['answer'\].*as_reward_func\(rubric=\.\.\.\)"):
        judge.as_reward_func()(prompts=["a"], completions=["b"], answer=["c"])


def test_grpo_takes_two_steps_with_it(judge, tmp_path):
    tokenizer = make_tokenizer()
    seen = []
    reward = judge.as_reward_func("Is it right?", max_new_tokens=20)

    def judge_score(**kwargs):
        seen.append(reward(**kwargs))
        return seen[-1]

    args = GRPOConfig(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    model = make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    before = model.lm_head.weight.detach().clone()
    trainer = GRPOTrainer(
        model=model,
        args=args,
        reward_funcs=[reward, judge_score],
        train_dataset=Dataset.from_list([{"prompt": f"Name prime number {i}."} for i in range(4)]),
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(seen) == 2 and all(0 < score <= 5 for row in seen for score in row)  # below 1 where mass is missing
    logged = [row["rewards/judge_score/mean"] for row in trainer.state.log_history if "rewards/judge_score/mean" in row]
    assert logged == pytest.approx([sum(row) / 4 for row in seen], abs=1e-4)
    assert not (model.lm_head.weight == before).all()


def test_a_row_without_a_rubric_has_no_reward_of_the_judge(judge):
    reward = judge.as_reward_func(max_new_tokens=40)
    found = reward(prompts=["Name a prime."] * 3, completions=["7"] * 3, rubric=[None, "right?", ""])
    (expected,) = judge.as_reward_func("right?", max_new_tokens=40)(prompts=["Name a prime."], completions=["7"])
    assert found == [None, pytest.approx(expected), None]
    assert judge.as_reward_func()(prompts=["a"], completions=["b"], rubric=[None]) == [None]


def test_a_turn_in_parts_is_judged_as_its_text(judge):
    reward = judge.as_reward_func("right?", max_new_tokens=40)

    def asked(content):
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        answer = [{"role": "assistant", "content": content}]
        return reward(prompts=[turns, turns[1:]], completions=[answer, answer])

    assert asked([{"type": "text", "text": "Name a "}, {"type": "text", "text": "prime."}]) == asked("Name a prime.")


def test_rewards_have_names_of_their_own(judge):
    assert judge.as_reward_func("right?").__name__ == "judge_score"
    assert judge.as_reward_func("kind?", name="kindness").__name__ == "kindness"


def test_settings_that_no_score_takes_are_refused_before_training():
    judge = fake_judge(lambda prompt: [sure(3)])
    with pytest.raises(ValueError, match=r"^'foo' is not a setting of a judge's score; known are \['max_new_tokens', "):
        judge.as_reward_func(foo=1)
    with pytest.raises(ValueError, match=r"^temperature=-1 is out of range"):
        judge.as_reward_func(temperature=-1)
