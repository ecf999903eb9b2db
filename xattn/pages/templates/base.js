"use strict";
// What all pages share. `xattn` is the only name that it adds.
const xattn = (() => {
  const root = document.documentElement;
  const THEMES = ["auto", "light", "dark"];

  // Pages from disk may be refused a store; then the choice lasts as long as the page.
  const remember = (key, value) => { try { localStorage.setItem("xattn." + key, value); } catch { /* not kept */ } };
  const remembered = (key) => { try { return localStorage.getItem("xattn." + key); } catch { return null; } };

  const listeners = [];
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const changed = () => listeners.forEach((call) => call(dark()));

  function theme(name) {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    remember("theme", name);
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.querySelector("[data-name]").textContent = name;
      button.setAttribute("aria-label", `Theme: ${name}`);
    }
    changed();
  }
  const nextTheme = () => theme(THEMES[(THEMES.indexOf(root.dataset.theme || "auto") + 1) % THEMES.length]);

  // A tooltip for every element with data-tip, by pointer and by keyboard.
  let tip = null;
  function hideTip() { if (tip) tip.hidden = true; }
  function showTip(element) {
    if (!tip) {
      tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip" }));
      tip.setAttribute("role", "tooltip");
    }
    tip.textContent = element.dataset.tip;
    tip.hidden = false;
    place(tip, element);
  }

  // Put a floating element below another one, or above where there is no room, always inside the window.
  function place(floating, anchor, margin = 8) {
    const at = anchor.getBoundingClientRect();
    const { offsetWidth: w, offsetHeight: h } = floating;
    const below = at.bottom + margin + h <= innerHeight || at.top - margin - h < 0;
    const left = Math.max(margin, Math.min(at.left + at.width / 2 - w / 2, innerWidth - w - margin));
    const top = below ? Math.min(at.bottom + margin, innerHeight - h - margin) : at.top - margin - h;
    floating.style.left = `${Math.round(left)}px`;
    floating.style.top = `${Math.round(Math.max(margin, top))}px`;
  }

  const owner = (event) => (event.target instanceof Element ? event.target.closest("[data-tip]") : null);
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const element = owner(event);
    if (element) showTip(element); else hideTip();
  });
  document.addEventListener("focusin", (event) => {
    const element = owner(event);
    if (element && element.matches(":focus-visible")) showTip(element); else hideTip();
  });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("scroll", hideTip, { capture: true, passive: true });

  document.addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[data-theme-toggle]")) button.addEventListener("click", nextTheme);
    theme(root.dataset.theme || "auto");
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  const before = remembered("theme");
  if (before === "light" || before === "dark") root.dataset.theme = before;

  return {
    /** Values of the data script (application/json) of that id. */
    data: (id) => JSON.parse(document.getElementById(id).textContent),
    /** Call with true (dark) or false at each change of the theme, for plots that take their colours in script. */
    onTheme: (call) => listeners.push(call),
    /** The value of a token such as "--ink" as it is now. */
    token: (name) => {
      const probe = document.body.appendChild(document.createElement("i"));
      probe.style.color = `var(${name})`;
      const value = getComputedStyle(probe).color;
      probe.remove();
      return value;
    },
    dark, place, nextTheme, remember, remembered,
  };
})();
