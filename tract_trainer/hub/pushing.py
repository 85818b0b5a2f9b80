"""Uploads judges and rationales to the Hub. The error of a failed upload holds the command that completes it."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, HfApi

from tract_trainer.errors import InputError
from tract_trainer.hub.card import fence, read_card, renew
from tract_trainer.judge_config import DEFAULT_TEMPLATE, JudgeConfig

NOT_UPLOADED = ("_*", "checkpoint-*", ".*")
DATASET_FILES = ("train.parquet", "report.json", "settings.json", "judge_config.json")


@contextmanager
def upload_advice(
    folder: Path, repo_id: str, repo_type: str = "model", private: bool | None = None, revision: str | None = None
) -> Iterator[None]:
    """Adds the command that completes a failed upload of `folder` to its error, an `OSError`."""
    try:
        yield
    except Exception as error:
        excluded = [word for pattern in NOT_UPLOADED for word in ("--exclude", pattern)]
        kind = [] if repo_type == "model" else ["--type", repo_type]
        where = [*(["--private"] if private else []), *(["--revision", revision] if revision else [])]
        command = shlex.join(["hf", "upload", repo_id, str(folder), ".", *kind, *where, *excluded])
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"The upload of {folder} to {repo_id} failed: {reason}\n"
            f"Nothing is lost, everything is in {folder}. When the cause is gone, go on with\n    {command}"
        ) from error


def push_judge(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """
    Uploads a saved judge as it is, without checkpoints, to a branch (`revision`) of a repository, which is created if
    there is none, and returns the commit's address. The OSError of a failed upload holds the command that completes it.
    """
    folder = Path(folder)
    with upload_advice(folder, repo_id, private=private, revision=revision):
        return _upload(folder, _created(repo_id, "model", token, private), "model", token, revision=revision)


def push_dataset(
    folder: str | Path, repo_id: str, *, judge: str | None = None, token: str | None = None, private: bool | None = None
) -> str:
    """
    Uploads rationales as a dataset with a card: their counts, how they were drawn, the scale, how to use them.

    Args:
        folder (`str`): `output_dir` of [`generate_cot_dataset`].
        repo_id (`str`): repository, created if there is none; `"NAME"` or `"OWNER/NAME"`.
        judge (`str`, *optional*): Hub repository of the judge that wrote them.
        token (`str`, *optional*): access token; by default, that of `hf auth login`.
        private (`bool`, *optional*): whether a new repository is private.

    Returns:
        `str`: the commit's address.

    Raises:
        InputError: the folder holds no finished rationales.
        OSError: the upload failed; the message holds the command that completes it.
    """
    folder = Path(folder)
    missing = [name for name in DATASET_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} holds no finished rationales: {', '.join(missing)} missing. Give the output_dir of "
            "generate_cot_dataset; called again with the same settings, it completes the folder."
        )
    with upload_advice(folder, repo_id, "dataset", private):
        full_name = _created(repo_id, "dataset", token, private)
        write_dataset_card(folder, full_name, judge)
        return _upload(folder, full_name, "dataset", token, allow_patterns=["README.md", *DATASET_FILES])


def write_dataset_card(folder: Path, name: str, judge: str | None = None) -> None:
    """Writes `README.md` for the rationales in `folder`. Text added by hand stays."""
    card = read_card(folder, DatasetCard)
    if card is None:
        raise InputError(f"{folder / 'README.md'} cannot be read. Correct the block at its head, or delete it.")
    found = {part: json.loads((folder / f"{part}.json").read_text(encoding="utf-8")) for part in ("report", "settings")}
    config = JudgeConfig.load(folder)
    facts = {"title": name.split("/")[-1], "name": name, "judge": judge, "config": config, **found}
    facts |= {"default_template": DEFAULT_TEMPLATE, "fence": fence(config.prompt_template)}
    metadata: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train.parquet"}]}],
        "task_categories": ["text-generation"],
        "tags": ["tract-trainer", "llm-as-a-judge", "synthetic"],
    }
    renew(card, folder, "dataset_card.md.jinja", facts, metadata)


def _upload(folder: Path, full_name: str, repo_type: str, token: str | None, **options: Any) -> str:
    """Uploads the folder, and returns the commit's address."""
    message = f"Upload {repo_type} with tract-trainer"
    where: dict[str, Any] = {"repo_id": full_name, "repo_type": repo_type, "folder_path": folder, "token": token}
    commit = HfApi().upload_folder(**where, commit_message=message, ignore_patterns=list(NOT_UPLOADED), **options)
    return str(commit.commit_url)


def _created(repo_id: str, repo_type: str, token: str | None, private: bool | None) -> str:
    """The repository's full name, after it is created if there is none."""
    created = HfApi().create_repo(repo_id, repo_type=repo_type, token=token, private=private, exist_ok=True)
    return created.repo_id
