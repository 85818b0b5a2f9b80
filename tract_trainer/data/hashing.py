"""Stable hashes of JSON-like values, and seeds made of them."""

import hashlib
import json
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any


def digest(*parts: Any) -> str:
    """32 hexadecimal digits, the same on every machine and in every process."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_as_text)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def _as_text(value: Any) -> str:
    # Parquet files have columns of these types beside JSON's.
    if isinstance(value, date | time | timedelta | Decimal | bytes):
        return str(value)
    raise TypeError(f"Expected a value as JSON has them, found {type(value).__name__}.")


def derive_seed(*parts: Any) -> int:
    """A seed between 0 and 2^63 - 1."""
    return int(digest(*parts)[:16], 16) >> 1
