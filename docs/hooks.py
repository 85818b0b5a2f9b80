"""Hook for MkDocs: warns, which fails `make docs`, where the reference shows the markup of a docstring."""

import logging
import re
from typing import Any

MARKUP = re.compile(r".*(?:\*optional\*|defaults to `|\[<code>|\[~|\(lambda).*")

log = logging.getLogger("mkdocs.hooks")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    if page.file.src_path == "reference.md":
        for found in MARKUP.findall(output):
            log.warning("reference.md shows markup: %s", found.strip())
    return output
