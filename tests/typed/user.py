"""A script as a user with a type checker writes it. `tests/test_typing.py` checks it, and that mistakes are found."""

from datasets import Dataset

from tract_trainer import (
    Judge,
    JudgeCallback,
    Judgment,
    RegressionAwareSFTConfig,
    RegressionAwareSFTTrainer,
    ScoreScale,
    agreement,
    generate_cot_dataset,
    load_benchmark,
)


def train(model: str, dataset: Dataset) -> None:
    args = RegressionAwareSFTConfig("judge", score_labels=["1", "2"], score_loss_weight=0.5)
    trainer = RegressionAwareSFTTrainer(model=model, args=args, train_dataset=dataset)
    trainer.add_callback(JudgeCallback(trainer, load_benchmark("mt_bench"), steps=10))
    trainer.train()
    own: Dataset = generate_cot_dataset("judge", dataset, num_cots=2, seed=1)
    print(own)


def judge(records: list[dict[str, str]]) -> float:
    loaded = Judge.from_pretrained("judge", engine="vllm")
    one: Judgment = loaded.score(records[0], num_cots=5)
    many: list[Judgment] = loaded.score(records)
    names: tuple[str, ...] = ScoreScale.integers(1, 5).labels
    found = loaded.compare(records[0], records[1], tie_width=0.5)
    print(one.label, names, found.verdict, agreement([judgment.score for judgment in many], [1.0] * len(many)))
    return one.score
