"""``report.html``: one self-contained page."""

from __future__ import annotations

from html import escape

from slimline.core.result import Report
from slimline.report import rows


def render(report: Report) -> str:
    """The report as one HTML file without any outside reference."""
    head, body = rows.summary(report)
    cells = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in body)
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(report.model)}</title><h1>{escape(report.sentence)}</h1><table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table></html>"
