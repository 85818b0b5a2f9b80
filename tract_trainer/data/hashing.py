"""Turns anything that names a random draw into the seed of that draw."""

import hashlib
import json
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any


def digest(*parts: Any) -> str:
    """A stable hash of JSON-like parts: 32 hexadecimal digits, the same on every machine and in every process."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_as_text)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def _as_text(value: Any) -> str:
    """What columns of Parquet files hold beside JSON's types."""
    if isinstance(value, date | time | timedelta | Decimal | bytes):
        return str(value)
    raise TypeError(f"Expected a value as JSON has them, found {type(value).__name__}.")


def derive_seed(*parts: Any) -> int:
    """A seed between 0 and 2^63 - 1 from JSON-like parts."""
    return int(digest(*parts)[:16], 16) >> 1
