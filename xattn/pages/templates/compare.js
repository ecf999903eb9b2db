"use strict";
(() => {
  const columns = xattn.data("columns");
  const settings = xattn.data("settings");
  const body = document.body;
  const grid = document.querySelector(".grid");
  const card = document.getElementById("card");
  const closer = document.getElementById("closer");
  const make = (name, cls = "", text = null) => {
    const element = document.createElement(name);
    if (cls) element.className = cls;
    if (text !== null) element.textContent = text;
    return element;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const short = (name) => name.split(",")[0];

  // ------------------------------------------------------------------------------------------------ state
  const state = { view: "overlay", alpha: settings.alpha, part: null, line: "all" };
  for (const group of document.querySelectorAll("[data-choose]")) {
    const pressed = group.querySelector("[aria-pressed=true]");
    state[group.dataset.choose] = pressed.value;
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) choose(group.dataset.choose, button.value);
    });
  }

  function choose(what, value) {
    const group = document.querySelector(`[data-choose="${what}"]`);
    if (!group) return;
    state[what] = value;
    for (const button of group.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.value === value));
    }
    if (what === "view") body.dataset.view = value;
    if (what === "line") showColumns();
    redraw();
    if (closer.open && what !== "view") fillCloser();
  }

  function next(what, step = 1) {
    const values = [...document.querySelectorAll(`[data-choose="${what}"] button`)].map((b) => b.value);
    if (values.length) choose(what, values[(values.indexOf(state[what]) + step + values.length) % values.length]);
  }

  // ------------------------------------------------------------------------------------------------ colours
  const tables = { plain: bytes(settings.tables.plain), signed: bytes(settings.tables.signed) };
  const ranks = settings.ranks;
  const rankColor = (rank) => `rgb(${ranks[rank % ranks.length].join(" ")})`;
  const between = (table, at) => {
    const place = Math.min(Math.max(at, 0), 1) * 255;
    const low = Math.min(Math.floor(place), 254);
    return [0, 1, 2].map((c) => table[3 * low + c] + (place - low) * (table[3 * low + 3 + c] - table[3 * low + c]));
  };

  // Colour and opacity of each of 256 values, with the formulas of xattn.viz.overlay.
  let looks = {};
  function mix() {
    const a = state.alpha;
    const opaque = state.view === "map";
    const plain = new Uint8ClampedArray(1024);
    const signed = new Uint8ClampedArray(1024);
    for (let i = 0; i < 256; i++) {
      const low = a * (0.4 + 0.6 * a);
      const high = 1 - (1 - a) ** 2;
      plain.set([...between(tables.plain, i / 255), 255 * (opaque ? 1 : low + ((high - low) * i) / 255)], 4 * i);
      const at = Math.max((i - 128) / 127, -1);
      const stretched = opaque ? at : Math.sign(at) * (0.35 + 0.65 * Math.abs(at));
      const strength = opaque ? 1 : (1 - (1 - a) ** 4) * Math.sqrt(Math.abs(at));
      signed.set([...between(tables.signed, (stretched + 1) / 2), 255 * strength], 4 * i);
    }
    // Rank colours cover more by themselves: half way on the slider is their usual 0.8.
    const covered = !settings.by_method ? a : a < 0.5 ? 1.6 * a : 0.8 + 0.4 * (a - 0.5);
    looks = { plain: new Uint32Array(plain.buffer), signed: new Uint32Array(signed.buffer), ranks: 255 * (opaque ? 1 : covered) };
  }

  for (const canvas of document.querySelectorAll("canvas[data-table]")) {
    const table = tables[canvas.dataset.table];
    const pixels = new ImageData(256, 1);
    for (let i = 0; i < 256; i++) pixels.data.set([table[3 * i], table[3 * i + 1], table[3 * i + 2], 255], 4 * i);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }
  function colored(element, rank) {
    const [r, g, b] = ranks[rank % ranks.length];
    element.style.setProperty("--color", rankColor(rank));
    element.style.setProperty("--on-color", 0.3 * r + 0.6 * g + 0.1 * b > 110 ? "#111" : "#fff");
    return element;
  }
  for (const element of document.querySelectorAll("[data-rank]")) colored(element, Number(element.dataset.rank));

  // ------------------------------------------------------------------------------------------------ drawing
  // Values of a coarse map on w x h pixels, bilinear with half-pixel centres.
  function enlarged(map, w, h) {
    map.codes ??= bytes(map.raw);
    const found = new Uint8Array(w * h);
    const xs = new Int32Array(w), fs = new Float32Array(w);
    for (let x = 0; x < w; x++) {
      const at = Math.min(Math.max(((x + 0.5) * map.w) / w - 0.5, 0), map.w - 1);
      xs[x] = Math.min(Math.floor(at), Math.max(map.w - 2, 0));
      fs[x] = at - xs[x];
    }
    const right = map.w > 1 ? 1 : 0, down = map.h > 1 ? map.w : 0;
    for (let y = 0; y < h; y++) {
      const at = Math.min(Math.max(((y + 0.5) * map.h) / h - 0.5, 0), map.h - 1);
      const row = Math.min(Math.floor(at), Math.max(map.h - 2, 0));
      const f = at - row;
      for (let x = 0; x < w; x++) {
        const k = row * map.w + xs[x];
        const top = map.codes[k] + fs[x] * (map.codes[k + right] - map.codes[k]);
        const low = map.codes[k + down] + fs[x] * (map.codes[k + down + right] - map.codes[k + down]);
        found[y * w + x] = top + f * (low - top) + 0.5;
      }
    }
    return { codes: found, gaps: null };
  }

  const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  async function decoded(map, w, h) {
    map.image ??= Object.assign(new Image(), { src: map.src });
    const image = map.image; // it may be given back meanwhile
    await image.decode();
    scratch.canvas.width = w;
    scratch.canvas.height = h;
    scratch.imageSmoothingQuality = "high";
    scratch.drawImage(image, 0, 0, w, h);
    const pixels = scratch.getImageData(0, 0, w, h).data;
    const codes = new Uint8Array(w * h);
    let gaps = null;
    for (let i = 0; i < codes.length; i++) {
      codes[i] = pixels[4 * i];
      if (pixels[4 * i + 3] < 255) (gaps ??= new Uint8Array(codes.length).fill(255))[i] = pixels[4 * i + 3];
    }
    return { codes, gaps };
  }

  // A picture of one cell: a photograph with a canvas over it. `side` is the longer side of the canvas in pixels.
  const sized = (canvas, side) => canvas.shape.map((s) => Math.max(1, Math.round((side * s) / Math.max(...canvas.shape))));
  function drawMap(canvas, map, side) {
    const [w, h] = sized(canvas, side);
    const paint = () => {
      const { codes, gaps } = canvas.values;
      const look = map.signed ? looks.signed : looks.plain;
      const pixels = new ImageData(w, h);
      const out = new Uint32Array(pixels.data.buffer);
      for (let i = 0; i < codes.length; i++) out[i] = look[codes[i]];
      if (gaps) for (let i = 0; i < codes.length; i++) pixels.data[4 * i + 3] *= gaps[i] / 255;
      canvas.width = w;
      canvas.height = h;
      canvas.getContext("2d").putImageData(pixels, 0, 0);
      canvas.dataset.drawn = "map";
    };
    if (canvas.values && canvas.values.key === `${w}x${h}`) return paint();
    if (map.raw) {
      canvas.values = { key: `${w}x${h}`, ...enlarged(map, w, h) };
      return paint();
    }
    const wanted = (canvas.wanted = Symbol());
    decoded(map, w, h).then((values) => {
      if (canvas.wanted !== wanted) return; // freed, or asked for otherwise
      canvas.values = { key: `${w}x${h}`, ...values };
      paint();
    });
    return null;
  }

  function drawParts(canvas, parts, only, side) {
    parts.codes ??= parts.maps.map(bytes);
    canvas.wanted = canvas.values = null;
    const [w, h] = sized(canvas, side);
    const at = parts.codes.map((codes) => enlarged({ codes, w: parts.w, h: parts.h }, w, h).codes);
    const pixels = new ImageData(w, h);
    for (let i = 0; i < w * h; i++) {
      let [r, g, b] = [0, 0, 0];
      if (only !== null || at.length <= 3) {
        at.forEach((codes, rank) => {
          if (only !== null && rank !== only) return;
          const color = ranks[rank % ranks.length];
          r += (codes[i] * color[0]) / 255;
          g += (codes[i] * color[1]) / 255;
          b += (codes[i] * color[2]) / 255;
        });
      } else {
        let best = 0;
        at.forEach((codes, rank) => { if (codes[i] > at[best][i]) best = rank; });
        [r, g, b] = ranks[best % ranks.length].map((c) => (c * at[best][i]) / 255);
      }
      pixels.data.set([r, g, b, looks.ranks], 4 * i);
    }
    canvas.width = w;
    canvas.height = h;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.dataset.drawn = "parts";
  }

  function draw(canvas, side) {
    const cell = canvas.cell;
    const inParts = cell.parts && state.part !== "map";
    const only = inParts && state.part !== "ranks" ? Number(state.part) : null;
    const stack = canvas.parentElement;
    stack.classList.toggle("ranks", Boolean(inParts));
    stack.classList.toggle("signed", Boolean(!inParts && cell.map && cell.map.signed));
    if (inParts) drawParts(canvas, cell.parts, only, side);
    else if (cell.map) drawMap(canvas, cell.map, side);
  }

  function free(canvas) {
    canvas.wanted = canvas.values = null;
    canvas.width = canvas.height = 0;
    delete canvas.dataset.drawn;
    if (canvas.cell.map) canvas.cell.map.image = null;
  }

  function picture(block, cell, name) {
    const stack = make("span", "stack");
    const photo = make("img");
    photo.alt = "";
    photo.decoding = "async";
    photo.src = cell.photo === undefined ? block.photo : block.photos[cell.photo];
    stack.append(photo);
    if (cell.map || cell.parts) {
      const canvas = make("canvas");
      canvas.width = canvas.height = 0;
      canvas.cell = cell;
      canvas.shape = block.shape;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", name);
      stack.append(canvas);
    } else {
      stack.classList.add("bare");
    }
    if (cell.status) stack.append(make("span", "status", cell.status));
    return stack;
  }

  // ------------------------------------------------------------------------------------------------ rows
  const blocks = [...grid.querySelectorAll(".block")];
  const near = new Set();
  let columnWidth = 104;

  // A row is built when it comes near, and its pictures are given back when it is far.
  function build(block) {
    if (block.data) return;
    block.data = JSON.parse(block.querySelector("script").textContent);
    const image = block.querySelector(".photo img");
    const [head, code] = image.src.split(",", 2);
    const kind = head.slice(5, head.indexOf(";"));
    block.photo = URL.createObjectURL(new Blob([bytes(code)], { type: kind })); // one picture for all cells of the row
    block.photos = block.data.photos || []; // what further networks see
    block.shape = [Number(image.getAttribute("width")), Number(image.getAttribute("height"))];
    columns.forEach((column, j) => {
      block.data.lines.forEach((line, k) => {
        if (column.specific || !k) block.append(cellOf(block, column, j, line, k)); // else it would be the same again
      });
    });
    updateTabStop();
  }

  // What a cell is about: a class, which several networks may see differently, or all of them.
  function classOf(column, cell, line) {
    return column.specific ? cell.class ?? line.class : "the same for every class";
  }

  function cellOf(block, column, j, line, k) {
    const cell = line.cells[j];
    const element = make("div", column.control ? "cell control" : "cell");
    Object.assign(element.dataset, { column: j, line: k });
    element.setAttribute("role", "gridcell");
    element.tabIndex = -1;
    element.hidden = isHidden(j, k);
    if (cell.note === undefined) {
      element.append(picture(block, cell, `${column.title}, ${classOf(column, cell, line)}, ${block.data.file}`));
      if (cell.parts) element.append(levelsOf(cell.parts));
    } else {
      element.classList.add("empty");
      element.append(make("span", "stack"));
      element.firstChild.append(make("span", "", cell.note));
    }
    const caption = element.appendChild(make("p", column.specific ? "caption of-class" : "caption"));
    caption.append(make("b", "", column.title));
    if (column.specific && (cell.class || block.data.lines.length > 1)) caption.append(make("span", "", short(cell.class ?? line.class)));
    if (settings.shares.length && cell.note === undefined) {
      element.appendChild(make("div", "under")).append(spark(cell.curves || {}));
    }
    return element;
  }

  const canvasesOf = (block) => [...block.querySelectorAll(".stack canvas")];
  const sideOf = () => Math.min(Math.max(Math.round(columnWidth * Math.min(devicePixelRatio, 2)), 64), 256);
  function drawBlock(block) {
    const side = sideOf();
    for (const canvas of canvasesOf(block)) if (!canvas.closest(".cell").hidden) draw(canvas, side);
  }
  let waiting = false;
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      mix();
      near.forEach(drawBlock);
      if (closer.open) drawCloser();
    });
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        near.add(target);
        build(target);
        drawBlock(target);
      } else if (near.delete(target)) {
        canvasesOf(target).forEach(free);
      }
    }
  }, { rootMargin: "900px 0px" });

  // ------------------------------------------------------------------------------------------------ curves
  const NS = "http://www.w3.org/2000/svg";
  const svg = (name, attributes = {}, text = null) => {
    const element = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== null) element.textContent = text;
    return element;
  };
  const path = (points, w, h, top = 1000) =>
    points.map((v, i) => `${i ? "L" : "M"}${(w * settings.shares[i]).toFixed(1)} ${(h * (1 - v / top)).toFixed(1)}`).join("");
  const area = (value) => value.toFixed(2).replace(/^0/, "");
  const highest = (...curves) => {
    const most = Math.max(...curves.flatMap((c) => [...(c.deletion || []), ...(c.insertion || [])]), 0);
    return [50, 100, 200, 500, 1000].find((top) => most <= top) || 1000;
  };

  function spark(curves) {
    const found = svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" });
    found.append(svg("path", { class: "ground", d: "M0 24H100" }));
    for (const kind of ["insertion", "deletion"]) {
      if (curves[kind]) found.append(svg("path", { class: kind, d: path(curves[kind], 100, 24) }));
    }
    return found;
  }

  // Deletion and insertion of a map, dashed those of a control on the same image.
  function chart(curves, control, controlName, height = 120) {
    const w = 230, h = height, left = 34, right = 44, top = 6, below = control ? 32 : 18;
    const found = svg("svg", { class: "chart", viewBox: `0 0 ${left + w + right} ${top + h + below}`, role: "img" });
    const said = ["deletion", "insertion"].filter((k) => curves[k]).map((k) => `${k} ${area(curves[`${k}_area`])}`);
    found.setAttribute("aria-label", `Area under the curve: ${said.join(", ")}`);
    const inside = svg("g", { transform: `translate(${left} ${top})` });
    const most = highest(curves, control || {});
    inside.append(svg("path", { class: "frame", d: `M0 0V${h}H${w}` }));
    inside.append(svg("text", { x: -5, y: 4, "text-anchor": "end", dy: "0.3em" }, `${most / 10} %`));
    inside.append(svg("text", { x: -5, y: h, "text-anchor": "end" }, "0"));
    inside.append(svg("text", { x: 0, y: h + 15 }, "0"));
    inside.append(svg("text", { x: w, y: h + 15, "text-anchor": "end" }, "all"));
    inside.append(svg("text", { x: w / 2, y: h + 15, "text-anchor": "middle" }, "share of the pixels"));
    if (control) {
      inside.append(svg("text", { x: w / 2, y: h + 29, "text-anchor": "middle" }, `dashed: ${controlName}`));
      for (const kind of ["insertion", "deletion"]) {
        if (control[kind]) inside.append(svg("path", { class: `${kind} reference`, d: path(control[kind], w, h, most) }));
      }
    }
    const ends = { deletion: h, insertion: 0 };
    for (const kind of ["insertion", "deletion"]) {
      if (!curves[kind]) continue;
      inside.append(svg("path", { class: kind, d: path(curves[kind], w, h, most) }));
      ends[kind] = h * (1 - curves[kind][curves[kind].length - 1] / most);
    }
    if (Math.abs(ends.deletion - ends.insertion) < 26) {
      const middle = Math.min(Math.max((ends.deletion + ends.insertion) / 2, 13), h - 13);
      const upper = ends.deletion < ends.insertion ? "deletion" : "insertion";
      ends[upper] = middle - 13;
      ends[upper === "deletion" ? "insertion" : "deletion"] = middle + 13;
    }
    for (const kind of ["insertion", "deletion"]) {
      if (!curves[kind]) continue;
      const y = Math.min(Math.max(ends[kind], 8), h - 14);
      inside.append(svg("text", { class: kind, x: w + 6, y: y + 2, "font-size": "12" }, area(curves[`${kind}_area`])));
      inside.append(svg("text", { x: w + 6, y: y + 13, "font-size": "9" }, kind));
    }
    found.append(inside);
    return found;
  }

  function levelsOf(parts) {
    const bar = make("div", "levels");
    parts.shares.forEach((share, rank) => {
      const piece = bar.appendChild(make("i"));
      colored(piece, rank);
      piece.style.flexGrow = String(share ?? 0);
    });
    return bar;
  }

  const percent = (share) => (share === null ? "" : `${Math.round(100 * share)} %`);
  function partList(parts) {
    const list = make("div", "part-list");
    parts.shares.forEach((share, rank) => {
      const item = list.appendChild(make("span"));
      item.append(colored(make("i", "chip", rank + 1), rank), make("span", "num", percent(share)));
    });
    if (parts.of > parts.maps.length) list.append(make("span", "muted", `of ${parts.of} parts`));
    return list;
  }

  // The control that a curve is compared with: the first one of the same network that has a curve on this image.
  function controlOf(line, j) {
    const found = columns.findIndex(
      (c, i) => c.control && i !== j && c.network === columns[j].network && line.cells[i].curves && line.cells[i].curves.deletion,
    );
    return found < 0 ? [null, ""] : [line.cells[found].curves, columns[found].title.toLowerCase()];
  }

  // ------------------------------------------------------------------------------------------------ the card
  let cardOwner = null, cardTimer = 0;
  function hideCard() {
    clearTimeout(cardTimer);
    card.hidden = true;
    cardOwner = null;
  }
  function showCard(element) {
    const column = columns[Number(element.dataset.column)];
    card.replaceChildren(make("p", "title", column.title));
    if (element.classList.contains("name")) {
      card.append(make("p", "muted", column.what + "."));
      if (column.paper) card.append(make("p", "faint", column.paper));
      card.append(make("p", "faint", `Beside the shared forward pass: ${column.cost}.`));
      if (column.mean) {
        card.append(chart(column.mean, null, "", 90));
        card.append(make("p", "faint", column.images > 1 ? `Mean over ${column.images} maps.` : ""));
      }
    } else {
      const block = element.closest(".block").data;
      const line = block.lines[Number(element.dataset.line)];
      const cell = line.cells[Number(element.dataset.column)];
      card.append(make("p", "muted", cell.note ?? `${short(classOf(column, cell, line))} ${column.specific ? cell.probability ?? line.probability : ""}`));
      if (cell.status) card.append(make("p", "warn", cell.told));
      if (cell.parts) card.append(partList(cell.parts));
      if (cell.curves && cell.curves.deletion) card.append(chart(cell.curves, ...controlOf(line, Number(element.dataset.column)), 90));
      else if (cell.curves) card.append(make("p", "faint", "No curve: the map orders nothing."));
    }
    card.hidden = false;
    xattn.place(card, element);
    cardOwner = element;
  }
  const cardable = (target) => (target instanceof Element ? target.closest(".cell, .name[data-column]") : null);
  grid.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const element = cardable(event.target);
    if (!element) return hideCard();
    if (element === cardOwner) return;
    clearTimeout(cardTimer);
    cardTimer = setTimeout(() => showCard(element), card.hidden ? 260 : 40);
  });
  grid.addEventListener("pointerleave", hideCard);
  grid.addEventListener("focusin", (event) => {
    const element = cardable(event.target);
    if (element && element.matches(":focus-visible")) showCard(element);
  });
  grid.addEventListener("focusout", hideCard);
  addEventListener("scroll", hideCard, { capture: true, passive: true });

  // ------------------------------------------------------------------------------------------------ looking closer
  let current = null; // [block, column, line]
  function openCloser(element) {
    hideCard();
    current = { block: element.closest(".block"), column: Number(element.dataset.column) };
    fillCloser();
    if (!closer.open) closer.showModal();
    drawCloser();
  }
  function fillCloser() {
    const { block, column: j } = current;
    build(block);
    const about = columns[j];
    closer.querySelector("#closer-title").textContent = about.title;
    closer.querySelector("#closer-meta").textContent = block.data.file;
    const lines = block.data.lines.filter(
      (line, k) => line.cells[j].note === undefined && (!about.specific || state.line === "all" || Number(state.line) === k),
    );
    const figures = closer.querySelector("#closer-figures");
    figures.style.setProperty("--figures", Math.max(lines.length, 1));
    for (const name of ["--aspect", "--contrast", "--brightness"]) figures.style.setProperty(name, block.style.getPropertyValue(name));
    figures.replaceChildren();
    const facts = closer.querySelector("#closer-facts");
    facts.replaceChildren();
    if (!lines.length) figures.append(make("p", "muted", block.data.lines[0].cells[j].note ?? "No map."));
    for (const line of lines) {
      const cell = line.cells[j];
      const figure = make("figure");
      figure.append(picture(block, cell, `${about.title}, ${classOf(about, cell, line)}, ${block.data.file}`));
      const caption = make("figcaption");
      caption.append(make("b", "", classOf(about, cell, line)), make("span", "num", about.specific ? cell.probability ?? line.probability : ""));
      if (cell.status) caption.append(make("span", "tag warn", cell.status));
      figure.append(caption);
      if (cell.status) figure.append(make("p", "warn", cell.told));
      figures.append(figure);
    }
    facts.append(make("p", "", about.what + "."));
    const source = make("p", "muted");
    if (about.link) {
      const link = Object.assign(make("a", "", about.paper), { href: about.link, target: "_blank", rel: "noopener noreferrer" });
      source.append(link);
    } else source.textContent = about.paper;
    facts.append(source);
    facts.append(make("p", "faint", `${about.control ? "A control: it knows nothing of the model. " : ""}${about.specific ? "" : "The same for every class. "}Cost beside the shared forward pass: ${about.cost}.`));
    const parts = lines.length ? lines[0].cells[j].parts : null;
    if (parts) {
      facts.append(make("p", "label", "Parts and their share in the activation"));
      const row = make("div", "segmented");
      parts.shares.forEach((share, rank) => {
        const button = make("button");
        button.type = "button";
        button.append(colored(make("i", "chip", rank + 1), rank), make("span", "num", percent(share)));
        button.setAttribute("aria-pressed", String(state.part === String(rank)));
        button.addEventListener("click", () => choose("part", state.part === String(rank) ? "ranks" : String(rank)));
        row.append(button);
      });
      facts.append(row);
    }
    for (const line of lines) {
      const cell = line.cells[j];
      if (!cell.curves || !cell.curves.deletion) continue;
      if (lines.length > 1) facts.append(make("p", "label", short(line.class)));
      facts.append(chart(cell.curves, ...controlOf(line, j), lines.length > 1 ? 96 : 150));
    }
    if (settings.shares.length && lines.some((line) => line.cells[j].curves && line.cells[j].curves.deletion)) {
      facts.append(make("p", "faint", "Probability of the class as pixels are blurred away (deletion, lower is better) or come back (insertion, higher is better), most important first."));
    }
  }
  function drawCloser() {
    for (const canvas of closer.querySelectorAll(".stack canvas")) draw(canvas, 448);
  }
  const shownBlocks = () => blocks.filter((b) => !b.hidden);
  const shownColumns = () => columns.map((_, j) => j).filter((j) => !hiddenColumns.has(j));
  function stepped(list, value, step) {
    const at = list.indexOf(value) + step;
    return at >= 0 && at < list.length ? list[at] : null;
  }
  function stepCloser(way) {
    if (way === "left" || way === "right") {
      const found = stepped(shownColumns(), current.column, way === "left" ? -1 : 1);
      if (found === null) return;
      current.column = found;
    } else {
      const found = stepped(shownBlocks(), current.block, way === "up" ? -1 : 1);
      if (found === null) return;
      current.block = found;
    }
    fillCloser();
    drawCloser();
  }
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
      const step = event.target.closest("[data-step]");
      if (step) stepCloser(step.dataset.step);
    });
  }
  closer.addEventListener("close", () => {
    closer.querySelector("#closer-figures").replaceChildren();
    const cell = current && current.block.querySelector(`.cell[data-column="${current.column}"]:not([hidden])`);
    if (cell) focusCell(cell);
  });
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell && !cell.classList.contains("empty")) openCloser(cell);
  });

  // ------------------------------------------------------------------------------------------------ columns, rows, size
  const hiddenColumns = new Set();
  const isHidden = (j, k) =>
    hiddenColumns.has(j) || (columns[j].specific && state.line !== "all" && Number(state.line) !== k);
  const tracksOf = (j) => (columns[j].specific && state.line === "all" ? settings.classes : 1);
  const menu = document.getElementById("methods");
  function showColumns() {
    hiddenColumns.clear();
    for (const box of menu.querySelectorAll("input")) if (!box.checked) hiddenColumns.add(Number(box.value));
    for (const name of grid.querySelectorAll(".name[data-column]")) {
      const j = Number(name.dataset.column);
      name.hidden = hiddenColumns.has(j);
      name.style.gridColumn = `span ${tracksOf(j)}`;
    }
    for (const cell of grid.querySelectorAll(".cell")) cell.hidden = isHidden(Number(cell.dataset.column), Number(cell.dataset.line));
    body.classList.toggle("several", settings.classes > 1 && state.line === "all");
    const count = columns.length - hiddenColumns.size;
    document.getElementById("count").textContent = hiddenColumns.size ? `${count} of ${columns.length}` : String(count);
    measure();
  }
  menu.addEventListener("change", showColumns);
  document.addEventListener("pointerdown", (event) => { if (!menu.contains(event.target)) menu.open = false; });

  const find = document.getElementById("find");
  const names = blocks.map((block) => [...block.querySelectorAll(".who p")].map((p) => p.title || p.textContent).join(" ").toLowerCase());
  if (find) find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    let any = false;
    blocks.forEach((block, i) => { block.hidden = !names[i].includes(wanted); any ||= !block.hidden; });
    grid.querySelector(".nothing").hidden = any;
  });

  const size = document.getElementById("size");
  const narrow = matchMedia("(max-width: 760px)");
  let chosenSize = null;
  function measure() {
    const tracks = Math.max(columns.reduce((sum, _, j) => sum + (hiddenColumns.has(j) ? 0 : tracksOf(j)), 0), 1);
    const few = blocks.length <= 2 && tracks > 8;
    body.classList.toggle("wall", narrow.matches || few);
    const free = grid.parentElement.clientWidth;
    const gap = parseFloat(getComputedStyle(grid.querySelector(".photo")).paddingLeft) || 0;
    // As large as fits the window, but not so small that nothing can be seen.
    const rest = free - 2 * gap - 4 - 8 * tracks;
    const alike = rest / (tracks + 1);
    const fitting = Math.floor(Math.min(Math.max(alike < 116 ? (rest - 116) / tracks : alike, 84), 240));
    const width = chosenSize ?? (few ? 190 : fitting);
    const root = document.documentElement.style;
    root.setProperty("--tracks", tracks);
    root.setProperty("--cell", `${width}px`);
    size.value = width;
    columnWidth = narrow.matches ? free / 3 : width;
    redraw();
  }
  size.addEventListener("input", () => { chosenSize = Number(size.value); measure(); });
  addEventListener("resize", measure);
  const alpha = document.getElementById("alpha");
  const setAlpha = (value) => {
    state.alpha = Math.min(Math.max(value, 0), 1);
    alpha.value = state.alpha;
    redraw();
  };
  alpha.addEventListener("input", () => setAlpha(Number(alpha.value)));

  // ------------------------------------------------------------------------------------------------ keyboard
  let tabStop = null;
  function updateTabStop() {
    if (tabStop && tabStop.isConnected) return;
    tabStop = grid.querySelector(".cell");
    if (tabStop) tabStop.tabIndex = 0;
  }
  function focusCell(cell) {
    if (tabStop) tabStop.tabIndex = -1;
    tabStop = cell;
    cell.tabIndex = 0;
    cell.focus({ preventScroll: true });
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  function move(cell, key) {
    const block = cell.closest(".block");
    const row = [...block.querySelectorAll(".cell:not([hidden])")];
    if (key === "ArrowLeft" || key === "ArrowRight") return row[row.indexOf(cell) + (key === "ArrowLeft" ? -1 : 1)];
    const other = stepped(shownBlocks(), block, key === "ArrowUp" ? -1 : 1);
    if (!other) return null;
    build(other);
    return other.querySelector(`.cell[data-column="${cell.dataset.column}"][data-line="${cell.dataset.line}"]`);
  }
  const VIEWS = { 1: "overlay", 2: "map", 3: "image" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input[type=search], select, textarea");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const cell = event.target.closest(".cell");
    const keys = document.getElementById("keys");
    const ways = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };
    if (VIEWS[event.key]) choose("view", VIEWS[event.key]);
    else if (event.key === "[") setAlpha(state.alpha - 0.1);
    else if (event.key === "]") setAlpha(state.alpha + 0.1);
    else if (event.key === "p" || event.key === "P") next("part", event.key === "P" ? -1 : 1);
    else if (event.key === "c") next("line");
    else if (event.key === "t") xattn.nextTheme();
    else if (event.key === "?") keys.showModal();
    else if (event.key === "/" && find && !closer.open) find.focus();
    else if ((event.key === "+" || event.key === "=" || event.key === "-") && !closer.open) {
      chosenSize = Math.min(Math.max(Number(size.value) + (event.key === "-" ? -24 : 24), 64), 360);
      measure();
    } else if (closer.open && ways[event.key] && !event.target.matches("input")) stepCloser(ways[event.key]);
    else if (cell && ways[event.key]) {
      const other = move(cell, event.key);
      if (other) focusCell(other);
    } else if (cell && (event.key === "Enter" || event.key === " ") && !cell.classList.contains("empty")) openCloser(cell);
    else if (event.key === "Escape" && menu.open) menu.open = false;
    else return;
    event.preventDefault();
  });
  document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());

  // ------------------------------------------------------------------------------------------------ begin
  body.dataset.view = state.view;
  mix();
  showColumns();
  blocks.forEach((block) => watcher.observe(block));
})();
