"""Several targets side by side: the table, and its page."""

from __future__ import annotations

import jinja2
from markupsafe import Markup

from slimline.core.result import Comparison, Report
from slimline.report.html import file
from slimline.report.rows import fidelity_text, lost_text
from slimline.report.sentence import bytes_text, ratio_text, time_text

HEAD = ("target", "verdict", "file", "against float32", "plain int8", "latency", "against float32", "plain int8", "quality", "lost", "answers as the original")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Slimline: {{ model }}, {{ rows | length }} targets</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<h1>{{ model }}, for {{ rows | map(attribute=0) | join(", ") }}</h1>
<p>Each target was searched for itself and measured in its own runtime; its float32 and its plain int8 are of that runtime too.</p>
<div class="wide"><table>
<thead><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
<ul>
{% for target, sentence in sentences %}<li><a href="{{ target }}/report.html">{{ target }}</a>: {{ sentence }}</li>
{% endfor %}
{% for s in stopped %}<li>{{ s.target }}: stopped. {{ s.error }}</li>
{% endfor %}
</ul>
</main>
</body>
</html>
"""


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each target under ``HEAD``; what stopped has its error in the sentences, not here."""
    return [_row(r) for r in found.runs]


def _row(report: Report) -> tuple[str, ...]:
    base, result, plain = report.baseline, report.compressed, report.references.get("plain int8")
    if result is None:
        return (report.target, report.verdict, *[""] * (len(HEAD) - 2))
    return (
        report.target,
        report.verdict,
        bytes_text(result.size_bytes),
        ratio_text(base.size_bytes, result.size_bytes, "smaller", "larger"),
        "" if plain is None else bytes_text(plain.size_bytes),
        time_text(result.latency_ms.median),
        ratio_text(base.latency_ms.median, result.latency_ms.median, "faster", "slower"),
        "" if plain is None else time_text(plain.latency_ms.median),
        "" if result.quality is None else f"{result.quality:.4f}",
        "" if result.quality is None or base.quality is None else lost_text(base.quality - result.quality, base.quality),
        fidelity_text(report.fidelity),
    )


def markdown(found: Comparison) -> str:
    """One table, then a sentence for each target."""
    lines = [f"# {_model(found)}: {len(found.runs) + len(found.stopped)} targets", ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD), *("| " + " | ".join(row) + " |" for row in table(found)), ""]
    lines += [f"- [{r.target}]({r.target}/report.md): {_plain(r.sentence)}" for r in found.runs]
    lines += [f"- {s.target}: stopped. {_plain(s.error)}" for s in found.stopped]
    return "\n".join(lines) + "\n"


def html(found: Comparison) -> str:
    """The same as one page without any outside reference."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(PAGE).render(
        model=_model(found),
        style=Markup(file("page.css")),
        head=HEAD,
        rows=table(found),
        sentences=[(r.target, r.sentence) for r in found.runs],
        stopped=found.stopped,
    )


def _model(found: Comparison) -> str:
    return found.runs[0].model if found.runs else "nothing delivered"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
