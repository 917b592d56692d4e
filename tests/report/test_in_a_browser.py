"""The page in headless Chromium: wide and narrow, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from slimline.core.result import Report
from slimline.report import html


@pytest.mark.parametrize("name", ["full", "failed", "no data", "cut off", "hostile"])
def test_nothing_is_cut_off_and_axe_finds_no_serious_fault(
    browser: Any, axe: str, reports: dict[str, Report], tmp_path: Path, name: str, window: tuple[int, str]
) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.render(reports[name]), encoding="utf-8")
    assert browser.show(page.as_uri(), *window) == []
    browser.screenshot(f"report-{name}-{window[0]}-{window[1]}")
    assert browser.outside() == []
    assert browser.faults(axe) == []


def test_a_fault_would_be_seen(browser: Any, axe: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<html lang=en><title>a</title><main><h1>a</h1><img src='data:,'><p style='width: 2000px; color: #ccc; background: #fff'>faint</p></main></html>"
    )
    browser.show(page.as_uri(), 390)
    assert len(browser.outside()) == 1
    assert {f.partition(":")[0] for f in browser.faults(axe)} == {"image-alt", "color-contrast"}


def test_a_picture_is_of_the_whole_page_and_taken_only_where_a_folder_is_named(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "long.html"
    page.write_text("<html lang=en><title>a</title><body style='margin: 0'><div style='height: 3000px'>long</div>")
    browser.show(page.as_uri())
    monkeypatch.delenv("SLIMLINE_SCREENSHOTS", raising=False)
    browser.screenshot("none")
    monkeypatch.setenv("SLIMLINE_SCREENSHOTS", str(tmp_path))
    browser.screenshot("long")
    assert [p.name for p in tmp_path.glob("*.png")] == ["long.png"]
    assert Image.open(tmp_path / "long.png").height == 3000


def test_the_switch_and_the_marks_answer(browser: Any, report: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.render(report), encoding="utf-8")
    browser.show(page.as_uri())
    shown = "[...document.querySelectorAll('figure[data-for]')].filter(f => !f.hidden).map(f => f.dataset.for)"
    assert browser.value(shown) == ["latency"]
    browser.value("document.querySelector('[data-view=size]').click()")
    assert browser.value(shown) == ["size"]
    browser.value("document.querySelector('figure:not([hidden]) .mark.chosen').focus()")
    assert browser.value("document.querySelector('figure:not([hidden]) .tip').textContent").startswith("Chosen: ")


def test_a_table_that_does_not_fit_can_be_scrolled_by_the_keyboard(browser: Any, report: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.render(report).replace("</main>", "<div class='scroll' id='wide'><p style='width: 3000px'>wide</p></div></main>"), encoding="utf-8")
    browser.show(page.as_uri())
    assert browser.value("[...document.querySelectorAll('.scroll[tabindex=\"0\"]')].some(box => box.id === 'wide')")
    assert not browser.value("document.querySelector('#before-after + .scroll').hasAttribute('tabindex')")
