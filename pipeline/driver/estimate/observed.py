"""What was seen of a sample: sums for its totals, duplicates, partitions, and some token ids to
measure a speed with.

In: prepared parts. Out: their sums by name, and what has no total. Memory: a hash for each sampled
text, KEPT_TOKENS ids, and KEPT_ROWS rows.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.driver.estimate.known_texts import KnownTexts
from pipeline.driver.estimate.totals import Sums, expanded
from pipeline.job.resolve import Job
from pipeline.workers.steps import PreparedPart
from pipeline.write import parquet

__all__ = ["Observed"]

KEPT_TOKENS = 1 << 17
KEPT_ROWS = 4000


class Observed:
    """The records of a sample.

    n_bytes: of records that were prepared. n_records: their number. n_documents, n_rows: that
    they gave. n_repeated: rows
    whose text an earlier row has. partitions: different combinations of partition values.
    reject_reasons: number by reason. ids: token ids of some texts. prepare_s: how long preparing
    took, for n_prepared_tokens.
    """

    def __init__(self, job: Job) -> None:
        self._by = list(job.spec.output.partition_by)
        self._rows: list[pa.Table] = []
        self._digests: set[str] = set()
        self._n_kept_tokens = 0
        self.n_bytes = 0
        self.n_records = 0
        self.n_documents = 0
        self.n_rows = 0
        self.n_repeated = 0
        self.partitions: set[tuple[str | None, ...]] = set()
        self.reject_reasons: Counter[str] = Counter()
        self.ids: list[npt.NDArray[np.int32]] = []
        self.prepare_s = 0.0
        self.n_prepared_tokens = 0

    def add(
        self,
        records: pa.Table,
        part: PreparedPart,
        seconds: float,
        n_records: int,
        known: KnownTexts,
    ) -> Sums:
        """Take some records and what was prepared of them in `seconds`. They stand for `n_records`;
        returns the sums of these: records, documents, rejects, rows, tokens (of rows, as they are
        stored), embedded_tokens (that the model will see: without texts that have a vector, and
        those that are equal once), reused (rows that have a vector), truncated (rows),
        squared_tokens, and `length 4` for the rows of 16 to 31 tokens."""
        rows = part.rows
        n_taken = records.num_rows
        n_tokens = rows["n_tokens"].to_numpy().astype(np.float64)
        is_new = ~known.find(rows["text_sha256"])
        ids = part.tokens["ids"].combine_chunks()
        self._keep(records, part, ids)
        self.prepare_s += seconds
        self.n_prepared_tokens += len(ids.flatten())
        n_documents = pc.count_distinct(rows["document"]).as_py()
        _, first = np.unique(rows["text_sha256"].to_numpy(), return_index=True)
        is_first = np.isin(np.arange(len(n_tokens)), first)
        powers = np.floor(np.log2(np.maximum(n_tokens, 1))).astype(np.int64)
        of_rows: dict[str, npt.NDArray[np.float64]] = {
            "rows": np.ones(len(n_tokens)),
            "tokens": n_tokens,
            "embedded_tokens": n_tokens * is_new * is_first,
            "reused": (~is_new).astype(np.float64),
            "truncated": rows["truncated"].to_numpy().astype(np.float64),
            "squared_tokens": n_tokens**2,
            **{f"length {power}": 1.0 * (powers == power) for power in np.unique(powers)},
        }
        document = rows["document"].to_numpy()
        value: dict[str, float] = {"records": n_records}
        variance: dict[str, float] = {}
        good = (np.arange(n_taken) < n_documents).astype(np.float64)
        for name, values in {"documents": good, "rejects": 1 - good}.items():
            value[name], variance[name] = expanded(values, n_records)
        for name, values in of_rows.items():
            by_record = np.bincount(document, values, n_taken)
            value[name], variance[name] = expanded(by_record.astype(np.float64), n_records)
        return Sums(value, variance)

    def _keep(self, records: pa.Table, part: PreparedPart, ids: pa.ListArray) -> None:
        rows = part.rows
        self.n_records += records.num_rows
        self.n_bytes += part.facts.record_bytes
        self.n_documents += pc.count_distinct(rows["document"]).as_py()
        self.n_rows += rows.num_rows
        self.reject_reasons.update(part.rejects["reason"].to_pylist())
        for digest in rows["text_sha256"].to_pylist():
            self.n_repeated += digest in self._digests
            self._digests.add(digest)
        if self._by:  # before those that are too many for a part are rejected
            good = records.filter(pc.is_null(records["reason"]))
            values = [pc.cast(good[name], pa.string()).to_pylist() for name in self._by]
            self.partitions.update(zip(*values, strict=True))
        if sum(table.num_rows for table in self._rows) < KEPT_ROWS:
            self._rows.append(rows)
        for each in ids:
            if self._n_kept_tokens > KEPT_TOKENS:
                break
            self.ids.append(each.values.to_numpy().astype(np.int32))
            self._n_kept_tokens += len(self.ids[-1])

    def row_bytes(self, has_text: bool) -> float:
        """Bytes of a row in a data file without its vector, as the sampled rows take them."""
        names = ["doc_id", "chunk", "text_sha256", "n_tokens", "source_record", "char_start"]
        names += ["text"] if has_text else []
        tables = [_plain(table.select(names)) for table in self._rows if table.num_rows]
        if not tables:
            return 0.0
        table = pa.concat_tables(tables)
        return len(parquet.encode(table, {})) / table.num_rows


def _plain(table: pa.Table) -> pa.Table:
    """Without dictionaries, whose numbers differ from table to table."""
    columns = {
        name: pc.cast(column, column.type.value_type)
        if pa.types.is_dictionary(column.type)
        else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(columns)
