"""Findings as JUnit XML: one suite for each artefact, one case for each check."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from slimline.project.gate import Finding


def junit(found: Sequence[Finding], *, inconclusive_fails: bool = True) -> str:
    """``fail`` is a failure; ``inconclusive`` an error of that type, or skipped where it does not stop anything."""
    root = ElementTree.Element("testsuites", name="slimline check")
    for artefact in dict.fromkeys(f.artefact for f in found):
        own = [f for f in found if f.artefact == artefact]
        unsure = sum(f.outcome == "inconclusive" for f in own)
        counts = {
            "tests": len(own),
            "failures": sum(f.outcome == "fail" for f in own),
            "errors": unsure * inconclusive_fails,
            "skipped": unsure * (not inconclusive_fails),
        }
        suite = ElementTree.SubElement(root, "testsuite", {"name": artefact} | {k: str(v) for k, v in counts.items()})
        for f in own:
            case = ElementTree.SubElement(suite, "testcase", classname=artefact, name=f.title)
            if f.outcome == "fail":
                ElementTree.SubElement(case, "failure", type="fail", message=f.sentence).text = f.sentence
            elif f.outcome == "inconclusive" and inconclusive_fails:
                ElementTree.SubElement(case, "error", type="inconclusive", message=f.sentence).text = f.sentence
            elif f.outcome == "inconclusive":
                ElementTree.SubElement(case, "skipped", message=f"inconclusive: {f.sentence}")
            else:
                ElementTree.SubElement(case, "system-out").text = f.sentence
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
