"use strict";
(() => {
  const found = xattn.data("found"), shots = xattn.data("shots"), digest = xattn.data("digest").slice(0, 16);
  const cards = [...document.querySelectorAll(".finding")];
  const byId = new Map(found.findings.map((finding, k) => [finding.id, { finding, card: cards[k], shots: shots[k] }]));
  const $ = (id) => document.getElementById(id);
  const key = "audit." + digest;

  // What a person has hidden and named stays with this page, where the browser keeps anything for it.
  let kept = { hidden: [], names: {} };
  try { kept = { ...kept, ...JSON.parse(xattn.remembered(key) || "{}") }; } catch { /* as if nothing was kept */ }
  const keep = () => xattn.remember(key, JSON.stringify(kept));
  const say = (text) => { $("said").textContent = text; };
  const nameOf = (id) => kept.names[id] || byId.get(id).card.dataset.first;

  const level = { value: "" };
  function draw() {
    const words = $("find").value.trim().toLowerCase();
    const one = $("class") ? $("class").value : "";
    let shown = 0;
    for (const [id, { finding, card }] of byId) {
      const hidden = kept.hidden.includes(id);
      const text = `${id} ${nameOf(id)} ${finding.class} ${finding.sentence} ${finding.why}`.toLowerCase();
      const fits = (!level.value || card.dataset.level === level.value) && (!one || card.dataset.class === one) &&
        (!words || text.includes(words) || finding.member_images.some((m) => m.image.toLowerCase().includes(words)));
      card.hidden = !fits || (hidden && !$("hidden").checked);
      card.classList.toggle("is-hidden", hidden);
      card.querySelector('[data-do="hide"]').textContent = hidden ? "Show again" : "Hide";
      card.querySelector(".name").textContent = nameOf(id);
      shown += card.hidden ? 0 : 1;
    }
    document.querySelector(".nothing").hidden = shown > 0;
    $("hidden-count").textContent = kept.hidden.length ? String(kept.hidden.length) : "";
  }

  function download(name, text, kind) {
    const url = URL.createObjectURL(new Blob([text], { type: kind }));
    const link = Object.assign(document.createElement("a"), { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    say(`${name} written`);
  }
  const plain = (ids) => ({
    provenance: found.provenance,
    findings: ids.map((id) => ({ ...byId.get(id).finding, name: nameOf(id), hidden: kept.hidden.includes(id) })),
  });
  // A name that a spreadsheet would take for a formula gets an apostrophe before it.
  const field = (value) => {
    const text = String(value ?? "").replace(/^[=+\-@\t\r]/, "'$&");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  function table(ids) {
    const lines = [["finding", "name", "class", "image", "half", "right", "source", "similarity", "share"]];
    for (const id of ids) {
      const { finding } = byId.get(id);
      for (const m of finding.member_images) {
        lines.push([id, nameOf(id), finding.class, m.image, m.half, m.right, m.source, m.similarity, m.share]);
      }
    }
    return lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
  }
  const visible = () => cards.filter((card) => !card.hidden).map((card) => card.id);

  // One finding closer
  let open = null;
  function look(id) {
    const { finding, shots: pictures } = byId.get(id);
    open = id;
    $("closer-title").textContent = `${finding.rank}. ${nameOf(id)}`;
    $("closer-text").textContent = finding.sentence;
    $("closer-shots").replaceChildren(...pictures.map((p) => {
      const figure = document.createElement("figure");
      const shot = Object.assign(document.createElement("span"), { className: "shot" });
      shot.style.aspectRatio = `${p.w}/${p.h}`;
      shot.append(Object.assign(new Image(p.w, p.h), { src: p.src, alt: p.name }));
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", p.view);
      svg.setAttribute("preserveAspectRatio", "none");
      for (let k = 0; k < 2; k++) {
        const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        path.setAttribute("d", p.outline);
        svg.append(path);
      }
      shot.append(svg);
      const words = [p.name, p.right && `predicted ${p.right === "right" ? "rightly" : "wrongly"}`,
        `${p.share} of the relevance`, p.half === "test" ? "tested on it" : "found on it"];
      const caption = document.createElement("figcaption");
      caption.textContent = words.filter(Boolean).join(" · ");
      figure.append(shot, caption);
      return figure;
    }));
    if (!$("closer").open) $("closer").showModal();
    history.replaceState(null, "", "#" + id);
  }
  function step(by) {
    const ids = visible();
    if (open && ids.length) look(ids[(ids.indexOf(open) + by + ids.length) % ids.length]);
  }

  let naming = null;
  function name(id) {
    naming = id;
    $("naming-text").value = nameOf(id);
    $("naming").returnValue = "";
    $("naming").showModal();
    $("naming-text").select();
  }
  $("naming").addEventListener("close", () => {
    if ($("naming").returnValue === "ok") {
      const text = $("naming-text").value.trim();
      if (text) kept.names[naming] = text; else delete kept.names[naming];
      keep();
      draw();
    }
    byId.get(naming).card.focus();
  });
  function hide(id) {
    const was = kept.hidden.includes(id);
    const ids = visible();
    const after = ids[ids.indexOf(id) + 1] || ids[ids.indexOf(id) - 1];
    kept.hidden = was ? kept.hidden.filter((other) => other !== id) : [...kept.hidden, id];
    keep();
    draw();
    say(was ? "shown again" : "hidden");
    if (byId.get(id).card.hidden && after) byId.get(after).card.focus();
  }

  const actions = {
    open: look, name, hide,
    json: (id) => download(`${id}.json`, JSON.stringify(plain([id]), null, 1), "application/json"),
    csv: (id) => download(`${id}.csv`, table([id]), "text/csv"),
  };
  document.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const action = target?.closest("[data-do]");
    if (action) actions[action.dataset.do](action.closest(".finding").id);
    if (target?.closest("[data-close]")) target.closest("dialog").close();
    const by = target?.closest("[data-step]");
    if (by) step(Number(by.dataset.step));
    const choice = target?.closest("#levels button");
    if (choice) {
      level.value = choice.value;
      for (const button of $("levels").children) button.setAttribute("aria-pressed", String(button === choice));
      draw();
    }
    if (target instanceof HTMLDialogElement) target.close();  // a click beside it
  });
  for (const id of ["find", "class", "hidden"]) $(id)?.addEventListener("input", draw);
  $("outlines").addEventListener("input", () => $("closer").classList.toggle("no-outlines", !$("outlines").checked));
  $("json").addEventListener("click", () => download("findings.json", JSON.stringify(plain(visible()), null, 1), "application/json"));
  $("csv").addEventListener("click", () => download("findings.csv", table(visible()), "text/csv"));
  $("help").addEventListener("click", () => $("keys").showModal());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if ($("closer").open) {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    const ids = visible();
    const here = document.activeElement?.closest?.(".finding")?.id;
    const at = ids.indexOf(here);
    if (event.key === "j" || event.key === "k") {
      const next = at < 0 ? 0 : Math.max(0, Math.min(ids.length - 1, at + (event.key === "j" ? 1 : -1)));
      if (ids.length) {
        byId.get(ids[next]).card.focus();
        history.replaceState(null, "", "#" + ids[next]);
      }
    } else if (event.key === "Enter" && document.activeElement?.classList.contains("finding")) {
      event.preventDefault();  // else the key would press the button that the dialog focuses
      look(here);
    }
    else if (event.key === "h" && here) hide(here);
    else if (event.key === "n" && here) { event.preventDefault(); name(here); }
    else if (event.key === "/") { event.preventDefault(); $("find").focus(); }
    else if (event.key === "t") xattn.nextTheme();
    else if (event.key === "?") $("keys").showModal();
  });

  for (const card of cards) card.dataset.first = card.querySelector(".name").textContent;
  draw();
  const wanted = () => {
    const entry = byId.get(decodeURIComponent(location.hash.slice(1)));
    if (!entry) return;
    if (entry.card.hidden) { $("hidden").checked = true; draw(); }
    entry.card.scrollIntoView();
    entry.card.focus({ preventScroll: true });
  };
  addEventListener("hashchange", wanted);
  wanted();
})();
