"""A table for a person: lines that fit a terminal, or aligned text in a pipe."""

import sys
from collections.abc import Collection, Sequence


def show_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, whole: Collection[str] = (), numbers: Collection[str] = ()
) -> None:
    """Prints a table.

    Args:
        heads: of the columns.
        rows: their cells.
        whole: heads of the columns that a narrow terminal does not wrap.
        numbers: heads of the columns that are aligned on the right.
    """
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for head in heads:
            table.add_column(head, no_wrap=head in whole, justify="right" if head in numbers else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table, markup=False, highlight=False)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for line in [heads, *rows]:
        cells = zip(heads, line, widths, strict=True)
        aligned = (cell.rjust(width) if head in numbers else cell.ljust(width) for head, cell, width in cells)
        print("  ".join(aligned).rstrip())
