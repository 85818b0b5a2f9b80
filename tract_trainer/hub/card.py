"""`README.md`, the card of a judge or of its rationales.

The generated part stands between two comments and is rewritten at every save. The text around it stays, and so does
other metadata; a `README.md` without the two comments keeps its text. Results of evaluations are metadata
(`model-index`), with the fingerprint of the weights that they belong to; the generated part shows them as a table.
Nothing here uses the network.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, RepoCard
from jinja2 import Environment, PackageLoader, StrictUndefined

from tract_trainer.data.store import replacing
from tract_trainer.engines.checkpoints import SavedJudge
from tract_trainer.errors import InputError
from tract_trainer.hub.results import escaped, eval_results, markdown_table

logger = logging.getLogger(__name__)

FILE_NAME = "README.md"
START = "<!-- tract-trainer:start; what follows is rewritten at every save, edit outside of it -->"
END = "<!-- tract-trainer:end -->"
RESULTS = "<!-- tract-trainer:results -->"
GENERATED = re.compile(r"<!-- tract-trainer:start\b[^\n]*-->.*<!-- tract-trainer:end -->", re.DOTALL)

# Metadata that a save corrects. Of other metadata it only adds what is missing.
OVERWRITTEN = ("base_model", "library_name")


def read_card(folder: str | Path, kind: type[RepoCard] = ModelCard) -> RepoCard | None:
    """The card in `folder`, empty if there is none; `None`, with a warning, if it cannot be read."""
    path = Path(folder) / FILE_NAME
    try:
        return kind.load(path) if path.is_file() else kind("---\n{}\n---\n")
    except (ValueError, TypeError, yaml.YAMLError) as error:  # a run of days must not end for it
        logger.warning(f"{path} is left as it is, since it cannot be read: {error}. Correct or delete it.")
        return None


def write_card(folder: str | Path, card: RepoCard) -> None:
    """Writes the card into `folder`."""
    with replacing(Path(folder) / FILE_NAME) as part:
        card.save(part)


def renew(
    card: RepoCard, folder: str | Path, template: str, facts: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """
    Rewrites the generated part of a card with a template and its variables, `facts`, completes its metadata, and saves
    it in `folder`, beside the weights. Results that belong to other weights are dropped. A new card has
    `facts["title"]`; metadata that is `None` is left out.
    """
    results = _results(card)
    if any(map(_weights, results)):
        known = (None, SavedJudge.find(folder).identity)  # None is for results of others
        results = [found for found in results if _weights(found) in known]
        _set_results(card, folder, results)
    generated = f"{START}\n\n{_rendered(template, {**facts, 'results': _table(results)})}\n{END}"
    if GENERATED.search(card.text):
        card.text = GENERATED.sub(lambda _: generated, card.text)
    elif not card.text.strip():
        card.text = f"\n# {facts['title']}\n\n{generated}\n"
    for name, value in metadata.items():
        if value is not None and (name in OVERWRITTEN or card.data.get(name) is None):
            card.data[name] = value
    given = card.data.get("tags") or []
    tags = [given] if isinstance(given, str) else given
    card.data["tags"] = [*tags, *(tag for tag in metadata["tags"] if tag not in tags)]
    write_card(folder, card)


def add_results(folder: str | Path, result: Mapping[str, Any]) -> None:
    """
    Adds the result of an evaluation to the card of a judge saved in `folder`: entries in `model-index`, and rows in a
    table, with intervals and n. A result on the same records with as many rationales is replaced. The next save keeps
    it if the weights are the same.

    Raises:
        InputError: the folder has no card that can be read, or `result` is not the result of an evaluation.
    """
    if not all(part in result for part in ("judge", "benchmark", "settings", "methods")):
        raise InputError(f"Expected the result of an evaluation, the JSON of tract evaluate; found {sorted(result)}.")
    card = read_card(folder)
    if card is None or not (Path(folder) / FILE_NAME).is_file():
        raise InputError(f"{folder} has no {FILE_NAME} with readable metadata. Save the judge again to have one.")
    new = eval_results(result, weights=SavedJudge.find(folder).identity)
    replaced = {found.unique_identifier for found in new}
    kept = [found for found in _results(card) if not _weights(found) or found.unique_identifier not in replaced]
    _set_results(card, folder, [*kept, *new])
    before, _, after = card.text.rpartition(RESULTS)
    if RESULTS in before:  # a README.md of the user's own has no table
        card.text = before.rpartition(RESULTS)[0] + _table([*kept, *new]) + after
    write_card(folder, card)


def _results(card: RepoCard) -> list[EvalResult]:
    return list(card.data.get("eval_results") or [])


def _weights(result: EvalResult) -> str | None:
    """The fingerprint of the weights that a result of [`add_results`] belongs to; `None` for a result of others."""
    return result.dataset_args.get("weights") if isinstance(result.dataset_args, dict) else None


def _set_results(card: RepoCard, folder: str | Path, results: list[EvalResult]) -> None:
    name = card.data.get("model_name") or Path(folder).resolve().name
    card.data["eval_results"], card.data["model_name"] = (results, name) if results else (None, None)


def _table(results: Sequence[EvalResult]) -> str:
    """Our results as a table between two comments."""
    rows = [
        [escaped(found.dataset_name), str(args["num_cots"]), str(found.metric_name), f"{found.metric_value:.3f}"]
        for found in results
        if _weights(found) and (args := found.dataset_args)
    ]
    heads = ["records", "rationales", "figure", "value"]
    text = markdown_table([heads, *rows]) if rows else "No evaluation of these weights has been added yet."
    return f"{RESULTS}\n\n{text}\n\n{RESULTS}"


def _rendered(template: str, facts: Mapping[str, Any]) -> str:
    found = environment("hub", keep_trailing_newline=True)
    found.filters |= {"repr": repr, "literal": _literal, "code": _code}
    return found.get_template(template).render(facts)


def environment(room: str, **settings: Any) -> Environment:
    """The Jinja environment of the templates in a room of this package."""
    loader = PackageLoader(f"tract_trainer.{room}")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings)


def fence(*texts: str) -> str:
    """A fence of code that none of `texts` ends."""
    marks = "```"
    while any(marks in text for text in texts):
        marks += "`"
    return marks


def _literal(text: str) -> str:
    """`text` as Python writes it, on several lines where it can be."""
    plain = all(c.isprintable() or c == "\n" for c in text) and '"""' not in f'{text}"' and "\\" not in text
    return f'"""{text}"""' if plain and "\n" in text else repr(text)


def _code(text: str) -> str:
    """`text` as code in a cell of a table."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", "\\|")
