"""Turns facts into `README.md`, the card of a judge or of its rationales, and keeps what others wrote there.

The generated part stands between two comments and is written anew each time. The text around it, other metadata and
other entries of `model-index` stay; a `README.md` without the two comments is its author's own, and only its metadata
is completed. Results of evaluations stand in the generated part with the fingerprint of the weights that they belong
to. Nothing here uses the network.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub.utils import yaml_dump
from jinja2 import Environment, PackageLoader, StrictUndefined

from tract_trainer.data.hashing import digest
from tract_trainer.engines.checkpoints import SavedJudge
from tract_trainer.errors import InputError
from tract_trainer.hub.results import markdown, model_index

logger = logging.getLogger(__name__)

FILE_NAME = "README.md"

START = "<!-- tract-trainer:start; what follows is written anew at every save, edit outside of it -->"

END = "<!-- tract-trainer:end -->"

RESULTS = "<!-- tract-trainer:results -->"

NO_RESULTS = "No evaluation of these weights has been added yet."

OVERWRITTEN = ("base_model", "library_name")
"""Metadata that a save corrects; of other keys it only adds those that are missing."""

METADATA = re.compile(r"\A---\r?\n(.*?)(?:^|\r?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)

GENERATED = re.compile(r"<!-- tract-trainer:start\b[^\n]*-->.*<!-- tract-trainer:end -->", re.DOTALL)

RESULT = re.compile(r"<!-- tract-trainer:result (\w+) (\w+) -->\n.*?\n<!-- tract-trainer:result-end -->", re.DOTALL)


class Card(NamedTuple):
    """A `README.md`: the mapping at its head, and the text below it."""

    metadata: dict[str, Any]
    text: str


def read_card(folder: str | Path) -> Card | None:
    """The card in `folder`, empty if there is none; `None`, with a warning, if it cannot be read."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return Card({}, "")
    try:
        content = path.read_text(encoding="utf-8-sig")
        found = METADATA.match(content)
        metadata = (yaml.safe_load(found[1]) or {}) if found else {}
        if not isinstance(metadata, dict):
            raise ValueError(f"the block at its head is a {type(metadata).__name__}, not a mapping")
    except (ValueError, yaml.YAMLError) as error:  # a run of days must not end for it
        logger.warning(f"{path} is left as it is, since it cannot be read: {error}. Correct or delete it.")
        return None
    return Card(metadata, content[found.end() :] if found else content)


def write_card(folder: str | Path, card: Card) -> None:
    """Writes the card into `folder`, in one go."""
    path = Path(folder) / FILE_NAME
    temporary = path.with_name(f"_{FILE_NAME}.tmp")  # what begins so is not uploaded
    head = f"---\n{yaml_dump(card.metadata, sort_keys=False)}---\n" if card.metadata else ""
    temporary.write_text(head + card.text, encoding="utf-8")
    temporary.replace(path)


def renewed(
    before: Card, folder: str | Path, template: str, facts: Mapping[str, Any], metadata: Mapping[str, Any]
) -> Card:
    """
    The card that `before` becomes.

    Args:
        before ([`Card`]): the card so far, maybe empty.
        folder (`str`): where the weights are. Results that belong to others are dropped.
        template (`str`): file name of the template; `facts` are its variables. `title` heads a new card.
        metadata (`Mapping`): the metadata as it would be on a new card; what is `None` is left out.
    """
    weights = SavedJudge.find(folder).identity
    kept = [found[0] for found in RESULT.finditer(before.text) if found[2] == weights]
    results = "\n\n".join([RESULTS, *(kept or [NO_RESULTS])])
    generated = f"{START}\n\n{_rendered(template, {**facts, 'results': results})}\n{END}"
    if GENERATED.search(before.text):
        text = GENERATED.sub(lambda _: generated, before.text)
    else:
        text = before.text if before.text.strip() else f"\n# {facts['title']}\n\n{generated}\n"
    keys = {found[1] for found in RESULT.finditer("\n\n".join(kept))}
    return Card(_current(_completed(before.metadata, metadata), keys), text)


def add_results(folder: str | Path, result: Mapping[str, Any]) -> None:
    """
    Adds the result of an evaluation to the card of a judge saved in `folder`: a table with intervals and n, and its
    entry in `model-index`. A result on the same records with as many rationales is replaced. The next save keeps it as
    long as the weights are the same.

    Args:
        folder (`str`): the judge's folder.
        result (`Mapping`): what [`~tract_trainer.evaluation.evaluate.evaluate`] returned.

    Raises:
        InputError: the folder has no card that can be read, or `result` is not the result of an evaluation.
    """
    if not all(part in result for part in ("judge", "benchmark", "settings", "methods")):
        raise InputError(f"Expected the result of an evaluation, the JSON of tract evaluate; found {sorted(result)}.")
    card = read_card(folder)
    if card is None or not (Path(folder) / FILE_NAME).is_file():
        raise InputError(f"{folder} has no {FILE_NAME} with readable metadata. Save the judge again to have one.")
    (entry,) = model_index([result])
    key = _key(entry["results"][0]) if entry["results"] else digest(result["benchmark"]["name"])[:12]
    title, _, body = markdown(result).partition("\n")
    heading = f"### {title.removeprefix('# ').rpartition(': ')[0]}"
    weights = SavedJudge.find(folder).identity
    block = f"<!-- tract-trainer:result {key} {weights} -->\n{heading}\n{body}<!-- tract-trainer:result-end -->"
    older = re.compile(rf"<!-- tract-trainer:result {key} .*?<!-- tract-trainer:result-end -->\n*", re.DOTALL)
    text = older.sub("", card.text).replace(f"{NO_RESULTS}\n\n", "")
    text = text.replace(RESULTS, f"{RESULTS}\n\n{block}", 1)
    heads = re.search(r"^# (.+)", card.text, re.MULTILINE)
    name = heads[1].strip() if heads else Path(folder).resolve().name
    write_card(folder, Card(_with_results(card.metadata, name, entry["results"]), text))


def _with_results(metadata: Mapping[str, Any], name: str, results: Sequence[Any]) -> dict[str, Any]:
    """`metadata` with `results` in the place of those on the same records, in the entry that has some, or a new one."""
    keys = {_key(found) for found in results}
    index = [entry for entry in _index(metadata) if isinstance(entry, dict)]
    own = next((entry for entry in index if any(map(_key, entry.get("results") or []))), None)
    own = own or next((entry for entry in index if entry.get("name") == name), None)
    if own is None:
        own = {"name": name}
        index.append(own)
    others = [found for found in own.get("results") or [] if _key(found) not in keys]
    return {**metadata, "model-index": [{**e, "results": [*others, *results]} if e is own else e for e in index]}


def _current(metadata: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    """`metadata` without results of ours that are none of `keys`."""
    index = []
    for entry in _index(metadata):
        found = entry.get("results") or [] if isinstance(entry, dict) else []
        kept = [result for result in found if _key(result) in keys | {""}]
        if kept or not found:
            index.append({**entry, "results": kept} if len(kept) < len(found) else entry)
    rest = {name: value for name, value in metadata.items() if name != "model-index"}
    return {**rest, "model-index": index} if index else rest


def _index(metadata: Mapping[str, Any]) -> list[Any]:
    index = metadata.get("model-index") or []
    return index if isinstance(index, list) else [index]


def _key(result: Any) -> str:
    """What tells results of ours apart: the records and the number of rationales; empty for a result of others."""
    dataset = result.get("dataset") if isinstance(result, dict) else None
    args = dataset.get("args") if isinstance(dataset, dict) else None
    return digest(args["digest"], args.get("num_cots"))[:12] if isinstance(args, dict) and "digest" in args else ""


def _completed(before: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    new = {name: value for name, value in metadata.items() if value is not None}
    tags = before.get("tags") or []
    tags = [tags] if isinstance(tags, str) else tags
    merged = {**new, **before} | {name: new[name] for name in OVERWRITTEN if name in new}
    return {**merged, "tags": [*tags, *(tag for tag in new["tags"] if tag not in tags)]}


def _rendered(template: str, facts: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("tract_trainer.hub"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"repr": repr, "literal": _literal, "code": _code}
    return environment.get_template(template).render(facts)


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
