"""The insides of libraries that the trainer relies on are as it expects them."""

import inspect
from importlib import import_module

import pytest

from tract_trainer.training import PRIVATE


def found_at(name):
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            value = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part, None)
        return value
    return None


def complaint(name, parameters, why):
    """A sentence if the library has changed what stands at `name`; empty if not."""
    value = found_at(name)
    if value is None:
        return f"{name} is gone from its library. It {why}: see tract_trainer/training."
    found = " ".join(inspect.signature(value).parameters)
    changed = f"{name} takes ({found}) and no longer ({parameters}). It {why}: see tract_trainer/training."
    return "" if found == parameters else changed


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_used_of_the_libraries_insides_is_as_expected(name):
    assert complaint(name, *PRIVATE[name]) == ""


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("trl.SFTTrainer._no_such_method", "self", "is gone from its library"),
        (
            "transformers.Trainer._save",
            "self folder",
            r"takes (self output_dir state_dict) and no longer (self folder)",
        ),
    ],
)
def test_a_change_is_told_in_a_sentence(name, parameters, said):
    assert said in complaint(name, parameters, "saves")


@pytest.mark.parametrize(
    ("attribute", "of"),
    [
        ("_fingerprint", "datasets.Dataset"),
        ("_signature_columns", "transformers.Trainer"),
        ("_tokenizer", "trl.SFTTrainer"),
    ],
)
def test_private_attributes_are_still_set(attribute, of):
    module, _, name = of.rpartition(".")
    source = "".join(inspect.getsource(kind) for kind in getattr(import_module(module), name).__mro__[:-1])
    assert f"self.{attribute}" in source, f"{of} has no attribute {attribute} any more: see tract_trainer/training."
