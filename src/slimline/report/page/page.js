"use strict";
// Everything here is an addition: without it all plots are visible, and each mark tells its plan in its title.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  // Text from outside only ever enters as text.
  const fill = (box, text) => {
    const lines = text.split("\n");
    box.replaceChildren(...lines.map((line, i) => {
      const part = document.createElement(i ? "span" : "b");
      if (i && i === lines.length - 1) part.className = "last";
      part.textContent = line;
      return part;
    }));
  };

  const rove = (items) => {
    const first = items.find((item) => item.classList.contains("chosen")) || items[0];
    items.forEach((item) => { item.setAttribute("tabindex", item === first ? "0" : "-1"); });
    const go = (to) => { items.forEach((item) => item.setAttribute("tabindex", item === to ? "0" : "-1")); to.focus(); };
    items.forEach((item, i) => item.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      const to = step ? items[(i + step + items.length) % items.length] : event.key === "Home" ? items[0] : event.key === "End" ? items[items.length - 1] : null;
      if (to) { event.preventDefault(); go(to); }
    }));
  };

  // Plots: hover, tap or focus shows what a mark is.
  all("[data-tips]").forEach((box) => {
    const tip = box.querySelector(".tip");
    const marks = all(".mark", box);
    let pinned = null;
    const hide = () => { tip.hidden = true; marks.forEach((mark) => mark.classList.remove("on")); };
    const show = (mark) => {
      hide();
      mark.classList.add("on");
      fill(tip, mark.dataset.tip);
      tip.hidden = false;
      const frame = box.getBoundingClientRect(), dot = mark.querySelector(".hit").getBoundingClientRect();
      const x = dot.left + dot.width / 2 - frame.left, above = dot.top - frame.top - tip.offsetHeight - 6;
      tip.style.left = Math.max(0, Math.min(frame.width - tip.offsetWidth, x - tip.offsetWidth / 2)) + "px";
      tip.style.top = (above > -40 ? above : dot.bottom - frame.top + 6) + "px";
    };
    marks.forEach((mark) => {
      all("title", mark).forEach((title) => title.remove()); // the tip takes its place
      mark.addEventListener("pointerenter", () => show(mark));
      mark.addEventListener("pointerleave", () => (pinned ? show(pinned) : hide()));
      mark.addEventListener("focus", () => { pinned = mark; show(mark); });
      mark.addEventListener("blur", () => { pinned = null; hide(); });
      mark.addEventListener("click", () => { pinned = mark; show(mark); });
    });
    box.addEventListener("keydown", (event) => { if (event.key === "Escape") { pinned = null; hide(); } });
    document.addEventListener("pointerdown", (event) => { if (!box.contains(event.target)) { pinned = null; hide(); } });
    if (marks.length) rove(marks.slice().sort((a, b) => parseFloat(a.querySelector("svg").getAttribute("x")) - parseFloat(b.querySelector("svg").getAttribute("x"))));
  });

  // Which axes.
  all(".switch").forEach((group) => {
    const buttons = all("button", group);
    const show = (view) => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === view)));
      all("[data-for]").forEach((figure) => { figure.hidden = figure.dataset.for !== view; });
    };
    buttons.forEach((button) => button.addEventListener("click", () => show(button.dataset.view)));
    group.hidden = buttons.length < 2;
    show(buttons[0].dataset.view);
  });

  // Layers: one at a time in the panel below.
  all("[data-strip]").forEach((strip) => {
    const detail = strip.parentElement.querySelector("[data-detail]");
    const cells = all(".cell", strip);
    const show = (cell) => {
      cells.forEach((other) => other.classList.toggle("on", other === cell));
      fill(detail, cell.dataset.tip);
    };
    cells.forEach((cell) => ["pointerenter", "focus", "click"].forEach((kind) => cell.addEventListener(kind, () => show(cell))));
    detail.hidden = false;
    show(cells[0]);
    rove(cells);
  });

  // Two runs are compared, neither one nor three.
  all("form").forEach((form) => {
    const boxes = all("input[type=checkbox]", form), button = form.querySelector("button"), hint = form.querySelector("[data-hint]");
    const count = () => {
      const ticked = boxes.filter((box) => box.checked).length;
      button.disabled = ticked !== 2;
      hint.textContent = ["Tick two runs.", "Tick one more."][ticked] || (ticked > 2 ? "Two can be compared: untick the others." : "");
    };
    form.addEventListener("change", count);
    window.addEventListener("pageshow", count); // back from a comparison, the ticks are still there
  });

  // What does not fit can be scrolled by the keyboard, too.
  const reach = () => all(".scroll").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
  });
  window.addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);
  reach();

  // Copying works in a secure context only.
  if (navigator.clipboard) {
    all("[data-copy]").forEach((button) => {
      button.hidden = false;
      button.addEventListener("click", () => navigator.clipboard.writeText(button.previousElementSibling.textContent).then(
        () => { button.textContent = "Copied"; },
        () => { button.textContent = "Not allowed"; },
      ));
    });
  }
})();
