"""What all reports can: be read as text, shown in a notebook, and worked with as a data frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from tfmot_asp.reports.document import Document
from tfmot_asp.reports.table import WIDTH


class Readable(ABC):
    """What says what it holds once, as a document."""

    @abstractmethod
    def document(self) -> Document:
        """What is shown: a summary, then tables."""

    def to_text(self, width: int | None = WIDTH, *, tables: bool = True) -> str:
        """The report as text. In ``str()`` tables have 120 columns, and other lines are as long as they are.

        Args:
            width: of a line: what is longer goes on below itself, words stay whole. None: a row is a line.
            tables: whether to show more than the summary.

        Example:
            >>> print(report.to_text(80))
        """
        return self.document().to_text(width, width, tables=tables)

    def __str__(self) -> str:
        return self.document().to_text()

    def _repr_html_(self) -> str:
        return self.document().to_html()


class Report(Readable):
    """A report with rows."""

    _ROWS: ClassVar[str] = "layers"  # the key of the rows in to_dict()

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""

    def to_dataframe(self) -> Any:
        """The rows of the report as a ``pandas.DataFrame``: those of ``to_dict()``, a column for each of their keys.

        Raises:
            ImportError: without pandas.

        Example:
            >>> frame = report.to_dataframe()
            >>> frame.groupby("kind").zeros.mean()
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_dataframe() needs pandas: pip install pandas. to_dict() has the same without it"
            ) from error
        return pd.DataFrame.from_records(self.to_dict()[self._ROWS])
