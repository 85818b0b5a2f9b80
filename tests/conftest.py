"""What all tests share."""

import gc
import hashlib

import pytest
from tiny import make_model, make_tokenizer, train_judge


@pytest.fixture(autouse=True, scope="session")
def frozen_imports():
    """Leaves the libraries' many objects out of garbage collection, which every `train()` runs in full."""
    import transformers  # noqa: F401
    import trl  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """
    The trainer of a judge that has learned `judge_rows`: every rationale that it writes for their prompts ends with a
    score. All tests share it, so none may change it.
    """
    trainer = train_judge(tmp_path_factory.mktemp("learned"))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    yield trainer
    changed = [name for name, parameter in trainer.model.named_parameters() if not parameter.equal(before[name])]
    assert not changed, f"a test has changed the judge that all share: {changed}"


@pytest.fixture(scope="session")
def judge_folder(learned, tmp_path_factory):
    """The judge of `learned`, saved. All tests share it, so none may write to it."""
    folder = tmp_path_factory.mktemp("shared") / "judge"
    learned.save_model(str(folder))
    before = files_of(folder)
    yield folder
    assert files_of(folder) == before, "a test has written to the judge that all share"


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="session")
def seed_folder(tmp_path_factory):
    """A language model that was never trained, with its tokenizer."""
    folder = tmp_path_factory.mktemp("seed")
    tokenizer = make_tokenizer("qwen")
    make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
