"use strict";
(() => {
  const views = [...document.querySelectorAll(".view")];

  // --- a view: which charts and lines are shown, and what is lit

  function start(root) {
    // Of the charts in a box the one that its selects name.
    for (const select of root.querySelectorAll("select[data-axis]")) {
      const block = select.closest(".block"), plots = [...block.querySelectorAll("[data-chart] > div")];
      const selects = [...block.querySelectorAll("select[data-axis]")];
      for (const value of new Set(plots.map((plot) => plot.dataset[select.dataset.key]))) select.append(new Option(value));
      if (select.options.length < 2) select.closest(".field").hidden = true;
      const choose = () => plots.forEach((plot) => {
        plot.hidden = selects.some((own) => own.options.length && plot.dataset[own.dataset.key] !== own.value);
      });
      select.addEventListener("change", choose);
      choose();
    }
    for (const button of root.querySelectorAll(".legend button")) button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true", of = `[data-m="${button.dataset.m}"]`;
      for (const same of root.querySelectorAll(`.legend ${of}`)) same.setAttribute("aria-pressed", shown);
      for (const line of root.querySelectorAll(`.series${of}`)) line.toggleAttribute("hidden", !shown);
    });
    for (const button of root.querySelectorAll("button[data-kind]")) button.addEventListener("click", () => {
      for (const other of root.querySelectorAll("button[data-kind]")) other.setAttribute("aria-pressed", other === button);
      for (const shots of root.querySelectorAll(".shots")) shots.hidden = shots.dataset.kind !== button.dataset.kind;
    });

    // What is pointed at, or has the focus, is lit everywhere in the view.
    let lit = null;
    const light = (j) => {
      if (j === lit) return;
      for (const element of root.querySelectorAll(".lit, .like-lit")) element.classList.remove("lit", "like-lit");
      lit = j;
      root.classList.toggle("some-lit", j != null);
      if (j == null) return;
      for (const element of root.querySelectorAll(`[data-m="${j}"]`)) element.classList.add("lit");
      const same = root.querySelector(`.board tr[data-m="${j}"]`)?.dataset.same.split(" ") ?? [];
      for (const k of same.filter(Boolean)) root.querySelector(`.board tr[data-m="${k}"]`)?.classList.add("like-lit");
    };
    const of = (event) => event.target.closest?.("[data-m]")?.dataset.m ?? null;
    root.addEventListener("pointerover", (event) => light(of(event)));
    root.addEventListener("pointerleave", () => light(null));
    root.addEventListener("focusin", (event) => light(of(event)));
    root.addEventListener("focusout", () => light(null));
  }

  // --- tables that sort

  function sortable(table) {
    const body = table.tBodies[0];
    const value = (row, i) => {
      const raw = row.cells[i].dataset.v;
      return raw === "" || raw === "nan" ? null : Number.isNaN(+raw) ? raw : +raw;
    };
    [...table.tHead.rows[0].cells].forEach((head, i) => head.querySelector("button")?.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.first ?? "ascending";
      const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row, i), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null)
        : typeof a === "number" && typeof b === "number" ? sign * (a - b) : sign * String(a).localeCompare(String(b))));
      body.append(...rows.map(([, row]) => row));
    }));
  }
  document.querySelectorAll("table[data-sortable]").forEach(sortable);

  document.querySelectorAll("[data-toggle]").forEach((button) => button.addEventListener("click", () => {
    const off = button.closest(".view").querySelector(".board").classList.toggle(button.dataset.toggle);
    button.setAttribute("aria-pressed", !off);
  }));

  // --- tabs

  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const started = new Set();
  let active = 0;

  // A part of the view, or of the page, that has something to show.
  const part = (name) => [views[active], document]
    .map((root) => root.querySelector(`[data-part="${name}"]`))
    .find((found) => found?.childElementCount && (!found.closest(".view") || found.closest(".view") === views[active]));

  function show(i, { focus = false, keep = false } = {}) {
    active = (i + views.length) % views.length;
    views.forEach((view, k) => { view.hidden = k !== active; });
    tabs.forEach((tab, k) => {
      tab.setAttribute("aria-selected", k === active);
      tab.tabIndex = k === active ? 0 : -1;
    });
    if (focus) tabs[active].focus();
    for (const button of document.querySelectorAll("[data-goto]")) button.hidden = !part(button.dataset.goto);
    if (!keep) history.replaceState(null, "", `#${views[active].dataset.view}`);
    if (started.has(active)) return;
    started.add(active);
    start(views[active]);
  }

  tabs.forEach((tab, i) => tab.addEventListener("click", () => show(i)));
  document.querySelector('[role="tablist"]').addEventListener("keydown", (event) => {
    const to = { ArrowRight: active + 1, ArrowLeft: active - 1, Home: 0, End: views.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to, { focus: true });
  });
  document.querySelectorAll("[data-goto]").forEach((button) => button.addEventListener("click", () => {
    part(button.dataset.goto).scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }));
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const i = Number(event.key) - 1;
    if (Number.isInteger(i) && views[i]) show(i);
    else if (event.key === "t") xattn.nextTheme();
  });

  const asked = views.findIndex((view) => view.dataset.view === decodeURIComponent(location.hash.slice(1)));
  show(Math.max(0, asked), { keep: true });
})();
