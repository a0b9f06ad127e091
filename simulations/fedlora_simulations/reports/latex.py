"""A table for a paper: LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

from fedlora_simulations.reports.tables import Cell, Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$", "…": r"\dots{}",
    "“": "``", "”": "''", '"': r"\textquotedbl{}",
}  # fmt: skip


def latex(table: Table) -> str:
    r"""A `table` with one `tabular`; it needs \usepackage{booktabs}."""
    columns = "".join("r" if is_number else "l" for is_number in table.columns)
    lines = [
        "% Needs \\usepackage{booktabs} and, for \\textquotedbl, \\usepackage[T1]{fontenc}.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row([escaped(heading) for heading in table.headings]),
        r"\midrule",
        *(_row([_cell(cell) for cell in row]) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Whatever it holds, as text."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _cell(cell: Cell) -> str:
    text = _minus(escaped(cell.text)) if cell.is_number else escaped(cell.text)
    return rf"\textbf{{{text}}}" if cell.is_best else text


def _minus(text: str) -> str:
    """A sign in front of a number as the sign that it is."""
    words = text.split(" ")
    return " ".join(f"${word[0]}${word[1:]}" if word[:1] in "+-" and word[1:2].isdigit() else word for word in words)


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
