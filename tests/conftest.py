"""What all tests share."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def frozen_imports():
    """Leaves the libraries' many objects out of garbage collection, which every `train()` runs in full."""
    import transformers  # noqa: F401
    import trl  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
