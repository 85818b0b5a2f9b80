"""Files of rows for tests."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq


def write(path, rows):
    """A file of `rows` in the format that its name ends with."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = ".jsonl" in path.suffixes
        text = ("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path
