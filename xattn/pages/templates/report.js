"use strict";
(() => {
  const data = xattn.data("report-data");
  const views = [...document.querySelectorAll(".view")];
  const SVG = "http://www.w3.org/2000/svg";

  // --- small things

  function svg(name, attributes = {}, ...children) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) if (value != null) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function html(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value != null) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const known = (v) => v != null && Number.isFinite(v);
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));

  function text(v) {
    const size = Math.abs(v);
    if (!known(v)) return "";
    if (size === 0) return "0";
    return size >= 1e-3 && size < 100 ? v.toFixed(3) : size < 1e6 && size >= 100 ? v.toFixed(0) : v.toExponential(0);
  }

  function time(s) {
    if (!known(s)) return "";
    return s < 1 ? `${+(s * 1e3).toPrecision(s * 1e3 < 10 ? 2 : 3)} ms` : `${+s.toPrecision(3)} s`;
  }

  // Ends of an axis with some room, and round numbers between them.
  function linear(values, room = 0.06) {
    const low = Math.min(...values), high = Math.max(...values), wide = high - low || Math.abs(high) || 1;
    return [low - room * wide, high + room * wide];
  }

  function ticks([low, high], count = 5) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power, found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(+v.toPrecision(12));
    return found;
  }

  function logTicks([low, high]) {
    const wide = Math.log10(high / low), found = [];
    const steps = wide > 2.4 ? [1] : wide > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 6, 8];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const m of steps) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
    return found;
  }

  const short = (v) => String(+v.toPrecision(4));
  const kindOf = (m) => (m.control ? " control" : "");

  // --- marks by family, which tell them apart without colour

  const SHAPES = {
    cam: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0",
    activation: "M-4-4h8v8h-8z",
    gradient: "M0-5.4L5 4H-5z",
    propagation: "M0 5.4L5-4H-5z",
    attention: "M0-5.8L5.8 0L0 5.8L-5.8 0z",
    perturbation: "M-1.7-5h3.4v3.3H5v3.4H1.7V5h-3.4V1.7H-5v-3.4h3.3z",
    control: "M-4.6-3.2L-3.2-4.6L0-1.4L3.2-4.6L4.6-3.2L1.4 0L4.6 3.2L3.2 4.6L0 1.4L-3.2 4.6L-4.6 3.2L-1.4 0z",
    other: "M0-6L1.5-1.9L5.7-1.9L2.3 .7L3.6 4.9L0 2.4L-3.6 4.9L-2.3 .7L-5.7-1.9L-1.5-1.9z",
  };

  // --- plots; each draws into an element as wide as it is, and again when that changes

  const picture = (width, height, label) =>
    svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });

  function frame(width, height, label, { left = 54, right = 14, top = 12, bottom = 40 } = {}) {
    const root = picture(width, height, label);
    return { root, x0: left, x1: width - right, y0: height - bottom, y1: top, width, height };
  }

  function axes(f, { xs, ys, xAt, yAt, xText = short, yText = short, xName, yName }) {
    const grid = svg("g", { class: "grid" }), axis = svg("g", { class: "axis" });
    for (const v of ys) {
      grid.append(svg("line", { x1: f.x0, x2: f.x1, y1: yAt(v), y2: yAt(v) }));
      axis.append(svg("text", { x: f.x0 - 8, y: yAt(v) + 4, "text-anchor": "end" }, yText(v)));
    }
    for (const v of xs) {
      grid.append(svg("line", { x1: xAt(v), x2: xAt(v), y1: f.y0, y2: f.y1 }));
      const said = xText(v), half = said.length * 3.2;  // texts stay inside
      axis.append(svg("text", { x: clamp(xAt(v), half, f.width - half), y: f.y0 + 17, "text-anchor": "middle" }, said));
    }
    axis.append(svg("line", { x1: f.x0, x2: f.x1, y1: f.y0, y2: f.y0 }));
    if (xName) axis.append(svg("text", { x: f.x1, y: f.y0 + 34, "text-anchor": "end", class: "axis-name" }, xName));
    if (yName) axis.append(svg("text", { x: 0, y: f.y1 - 6, class: "axis-name" }, yName));
    f.root.append(grid, axis);
  }

  function scatter(box, view, { up, across }) {
    const y = view.columns[up], timed = across === "time", x = timed ? null : view.columns[+across];
    const width = box.clientWidth, label = `${y.title} against ${timed ? "time" : x.title}`;
    const f = frame(width, clamp(width * 0.62, 280, 430), label, { top: 24 });
    const xs = timed ? view.seconds : x.mean;
    const there = view.methods.map((_, j) => j).filter((j) => known(y.mean[j]) && known(xs[j]) && (!timed || xs[j] > 0));
    box.replaceChildren(f.root);
    if (!there.length) return;
    const log = timed || x.title.startsWith("sparsity");
    const yEnds = linear(there.flatMap((j) => [y.low[j], y.high[j]]));
    let xEnds = log
      ? [Math.min(...there.map((j) => xs[j])) / 1.25, Math.max(...there.map((j) => xs[j])) * 1.35]
      : linear(there.flatMap((j) => [x.low[j], x.high[j]]));
    const share = (v) => (log ? Math.log(v / xEnds[0]) / Math.log(xEnds[1] / xEnds[0]) : (v - xEnds[0]) / (xEnds[1] - xEnds[0]));
    const xAt = (v) => f.x0 + share(v) * (f.x1 - f.x0);
    const turned = y.lower;  // up is better
    const yAt = (v) => {
      const at = (v - yEnds[0]) / (yEnds[1] - yEnds[0]);
      return turned ? f.y1 + at * (f.y0 - f.y1) : f.y0 - at * (f.y0 - f.y1);
    };
    axes(f, {
      xs: log ? logTicks(xEnds) : ticks(xEnds, clamp(Math.round(width / 110), 3, 7)), ys: ticks(yEnds), xAt, yAt,
      xText: timed ? time : short, xName: timed ? "time for one image" : x.title, yName: `${y.title}, up is better`,
    });
    const taken = there.map((j) => [xAt(xs[j]) - 5, yAt(y.mean[j]) - 5, 10, 10]);
    for (const j of view.order.filter((j) => there.includes(j)).concat(there.filter((j) => !view.order.includes(j)))) {
      const m = view.methods[j], px = xAt(xs[j]), py = yAt(y.mean[j]);
      const [w, side] = [m.label.length * 6.4, 9];
      const spots = [[side, 4, "start"], [-side, 4, "end"], [0, -side, "middle"], [0, side + 9, "middle"]];
      const spot = spots.find(([dx, dy, anchor]) => {
        const left = px + dx - (anchor === "end" ? w : anchor === "middle" ? w / 2 : 0), top = py + dy - 10;
        const inside = left > f.x0 - 30 && left + w < f.width && top > 0;
        return inside && taken.every(([a, b, c, d], i) =>
          i === there.indexOf(j) || left + w < a || left > a + c || top + 13 < b || top > b + d);
      });
      const [dx, dy, anchor] = spot ?? spots[px > f.width * 0.7 ? 1 : 0];
      if (spot) taken.push([px + dx - (anchor === "end" ? w : anchor === "middle" ? w / 2 : 0), py + dy - 10, w, 13]);
      const tip = `${m.label}\n${y.title} ${text(y.mean[j])} [${text(y.low[j])}, ${text(y.high[j])}]\n` +
        (timed ? `${time(xs[j])} for one image` : `${x.title} ${text(xs[j])}`);
      f.root.append(svg("g", {
        class: `point${kindOf(m)}`, "data-m": j, "data-f": m.family, "data-tip": tip, tabindex: 0, role: "img",
        transform: `translate(${px.toFixed(1)} ${py.toFixed(1)})`, "aria-label": tip,
      },
      svg("line", { class: "whisker", x1: 0, x2: 0, y1: yAt(y.low[j]) - py, y2: yAt(y.high[j]) - py }),
      svg("path", { class: "shape", d: SHAPES[m.family] ?? SHAPES.other }),
      svg("circle", { class: "hit", r: 7 }),
      svg("text", { x: dx, y: dy, "text-anchor": anchor, class: spot ? null : "hidden" }, m.label)));
    }
  }

  function lines(box, view, { title, x, names, means, low, high, label, shown }) {
    const width = box.clientWidth, f = frame(width, clamp(width * 0.6, 240, 340), title, { top: 34, left: 48, right: 18 });
    box.replaceChildren(f.root);
    const there = view.methods.map((_, j) => j).filter((j) => shown.has(j) && means[j].some(known));
    const ends = there.flatMap((j) => [...means[j], ...(low ? [...low[j], ...high[j]] : [])].filter(known));
    f.root.append(svg("text", { x: 0, y: 14, class: "head" }, title));
    if (!ends.length) return;
    const yEnds = linear(ends), xEnds = x ? [x[0], x.at(-1)] : [0, Math.max(1, names.length - 1)];
    const places = x ?? names.map((_, i) => i);
    const xAt = (v) => f.x0 + ((v - xEnds[0]) / (xEnds[1] - xEnds[0])) * (f.x1 - f.x0);
    const yAt = (v) => f.y0 - ((v - yEnds[0]) / (yEnds[1] - yEnds[0])) * (f.y0 - f.y1);
    axes(f, {
      xs: x ? ticks(xEnds, 5) : places, ys: ticks(yEnds), xAt, yAt,
      xText: x ? (v) => `${Math.round(v * 100)} %` : (v) => names[v], xName: label,
    });
    const path = (values, points = places) => {
      const at = points.map((v, i) => (known(values[i]) ? `${xAt(v).toFixed(1)} ${yAt(values[i]).toFixed(1)}` : null));
      return at.filter(Boolean).join("L");
    };
    for (const j of there.toReversed()) {
      const m = view.methods[j], color = view.colors?.[j];
      const group = svg("g", { class: `series${kindOf(m)}`, "data-m": j, "data-f": m.family, style: color && `--c:${color}` });
      if (low && !m.control) {
        const back = path([...high[j]].reverse(), [...places].reverse());
        group.append(svg("path", { class: "band", d: `M${path(low[j])}L${back}z` }));
      }
      group.append(svg("path", { class: "line", d: `M${path(means[j])}` }));
      places.forEach((v, i) => {
        if (!known(means[j][i])) return;
        const around = low ? ` [${text(low[j][i])}, ${text(high[j][i])}]` : "";
        const at = { cx: xAt(v).toFixed(1), cy: yAt(means[j][i]).toFixed(1) };
        group.append(svg("circle", { class: "bead", r: 3, ...at }), svg("circle", {
          class: "hit", r: 9, ...at,
          "data-tip": `${m.label}\n${x ? `${Math.round(v * 100)} %` : names[i]}: ${text(means[j][i])}${around}`,
        }));
      });
      f.root.append(group);
    }
  }

  // Names to the left, names or their numbers above, one cell for each pair.
  function grid(box, { label, rows, numbers = false, draw }) {
    const letter = 6.4, beside = Math.max(0, ...rows.map((r) => (r.aside ?? "").length)) * letter + 10;
    const most = clamp(Math.floor((box.clientWidth - beside - 34 - rows.length * 15) / letter), 18, 44);
    const cut = (t) => (t.length > most ? t.slice(0, most - 1) + "…" : t);
    const longest = Math.max(...rows.map((r) => cut(r.text).length)), left = longest * letter + (numbers ? 34 : 14);
    const size = clamp((box.clientWidth - left - Math.max(30, beside)) / rows.length, 15, 30);
    const head = numbers ? 20 : Math.min(26, longest) * letter * 0.82 + 14;
    const aside = numbers ? beside : Math.min(26, longest) * letter * 0.57;
    const width = left + rows.length * size + aside, height = head + rows.length * size + 4;
    const root = picture(width, height, label);
    root.classList.add("cells");
    rows.forEach((r, i) => {
      const name = { "data-m": r.m, class: `name ${r.kind ?? ""}` }, middle = (i + 0.5) * size;
      root.append(svg("text", { ...name, x: left - (numbers ? 28 : 8), y: head + middle + 4, "text-anchor": "end" }, cut(r.text)));
      if (numbers) {
        if (r.aside) root.append(svg("text", { ...name, x: left + rows.length * size + 8, y: head + middle + 4 }, r.aside));
        root.append(svg("text", { class: "number", x: left - 7, y: head + middle + 4, "text-anchor": "end" }, i + 1),
          svg("text", { class: "number", x: left + middle, y: head - 6, "text-anchor": "middle" }, i + 1));
      } else root.append(svg("text", { ...name, transform: `translate(${left + middle + 3} ${head - 7}) rotate(-55)` }, cut(r.text)));
      rows.forEach((_, k) => root.append(...draw(i, k, left + k * size, head + i * size, size)));
    });
    box.replaceChildren(root);
  }

  function tauMatrix(box, { names, tau, winners }, view) {
    const rows = names.map((name, i) => {
      const m = winners ? view.methods[winners[i]] : null;
      return { text: name, aside: m?.label, m: winners?.[i], kind: m && m.control ? "alarm" : "" };
    });
    grid(box, { label: "rank correlation", rows, numbers: true, draw: (i, k, x, y, size) => {
      const v = tau[i][k], side = v < 0 ? "--down" : "--up";
      const mix = known(v) ? `color-mix(in oklab, var(${side}) ${Math.round(Math.abs(v) * 100)}%, var(--surface))` : "none";
      const found = [svg("rect", {
        class: "cell", x, y, width: size, height: size, style: `fill:${mix}`,
        "data-tip": `${names[i]}\n${names[k]}\nτ = ${known(v) ? v.toFixed(2) : "undefined"}`,
      })];
      if (size >= 22 && known(v)) found.push(svg("text", {
        class: `value${Math.abs(v) > 0.62 ? " strong" : ""}`, x: x + size / 2, y: y + size / 2 + 3.5, "text-anchor": "middle",
      }, v.toFixed(1).replace(/^(-?)0\./, "$1.").replace("-.0", ".0")));
      return found;
    } });
  }

  function pairMatrix(box, view, { on }) {
    const own = view.pairs[on], order = view.order;
    const names = order.map((j) => ({ text: view.methods[j].label, m: j, kind: view.methods[j].control ? "control" : "" }));
    grid(box, { label: `differences on ${own.title}`, rows: names, draw: (i, k, x, y, size) => {
      if (i === k) return [];
      const v = own.better[i][k], [a, b] = [names[i].text, names[k].text];
      const said = v > 0 ? `${a} is better than ${b}` : v < 0 ? `${b} is better than ${a}` : `${a} and ${b} cannot be told apart`;
      const tip = `${own.title}: ${said}\ndifference ${text(own.difference[i][k])}` +
        (known(own.p[i][k]) ? `, p = ${own.p[i][k] < 1e-3 ? own.p[i][k].toExponential(0) : own.p[i][k].toFixed(3)}` : "");
      const at = { cx: x + size / 2, cy: y + size / 2 };
      return [
        svg("rect", { x, y, width: size, height: size, fill: "transparent", "data-tip": tip }),
        svg("circle", {
          ...at, r: v > 0 ? size * 0.32 : v < 0 ? size * 0.29 : 2.2,
          class: v > 0 ? "dot-up" : v < 0 ? "dot-down" : "dot-same", "pointer-events": "none",
        }),
      ];
    } });
  }

  // Demšar 2006, fig. 1: methods at their mean ranks, bars join those that the test does not tell apart.
  function rankDiagram(box, view, { on }) {
    const d = view.ranks[on], m = d.ranks.length;
    const order = d.ranks.map((_, k) => k).sort((a, b) => d.ranks[a] - d.ranks[b]);
    const low = Math.floor(Math.min(...d.ranks)), high = Math.max(low + 1, Math.ceil(Math.max(...d.ranks)));
    const side = Math.min(250, Math.max(...d.methods.map((j) => view.methods[j].label.length)) * 6.6 + 56);
    const width = Math.max(box.clientWidth, 2 * side + 320);
    const at = (r) => side + ((r - low) / (high - low)) * (width - 2 * side);
    const place = new Map(d.methods.map((j, k) => [j, k]));
    const bars = [], ends = [];
    for (const [from, to] of d.groups.map((g) => g.map((j) => d.ranks[place.get(j)])).map((r) => [Math.min(...r), Math.max(...r)]).sort((a, b) => a[0] - b[0])) {
      let level = ends.findIndex((end) => end + 0.06 * (high - low) < from);
      if (level < 0) level = ends.length;
      ends[level] = to;
      bars.push([level, from, to]);
    }
    const half = Math.ceil(m / 2), top = 62 + 11 * ends.length, height = top + half * 21 + 8;
    const root = picture(width, height, `mean ranks on ${d.title}`);
    const axis = svg("g", { class: "axis" }, svg("line", { x1: at(low), x2: at(high), y1: 46, y2: 46 }));
    for (let r = low; r <= high; r++) {
      axis.append(svg("line", { x1: at(r), x2: at(r), y1: 41, y2: 46 }));
      if (high - low <= 14 || r % 2 === 0) axis.append(svg("text", { x: at(r), y: 36, "text-anchor": "middle" }, r));
    }
    const end = at(Math.min(high, low + d.width));
    axis.append(svg("line", { x1: at(low), x2: end, y1: 11, y2: 11, style: "stroke:var(--ink);stroke-width:2" }),
      svg("text", { x: end + 8, y: 15 }, `critical difference ${+d.width.toPrecision(2)}, ${d.images.toLocaleString("en")} images, Friedman p ${d.p < 1e-3 ? "< 0.001" : "= " + d.p.toPrecision(2)}`));
    root.append(axis);
    order.forEach((k, i) => {
      const j = d.methods[k], method = view.methods[j], left = i < half, y = top + (left ? i : m - 1 - i) * 21 + 8;
      const edge = left ? side - 14 : width - side + 14, name = `${method.label}  ${d.ranks[k].toFixed(2)}`;
      root.append(svg("g", { class: `rank${kindOf(method)}`, "data-m": j, "data-f": method.family },
        svg("polyline", { points: `${at(d.ranks[k])},46 ${at(d.ranks[k])},${y} ${edge},${y}` }),
        svg("text", { x: left ? edge - 6 : edge + 6, y: y + 4, "text-anchor": left ? "end" : "start" },
          left ? name : `${d.ranks[k].toFixed(2)}  ${method.label}`)));
    });
    for (const [level, from, to] of bars)
      root.append(svg("line", { class: "join", x1: at(from) - 3, x2: at(to) + 3, y1: 55 + 11 * level, y2: 55 + 11 * level }));
    box.replaceChildren(root);
  }

  // --- a view: its plots, drawn when it is first seen

  // Curves of one family need colours of their own: the hue of the family, then others far from it.
  const LINE_COLORS = ["--up", "--f-attention", "--f-propagation", "--f-perturbation", "--f-gradient", "--accent", "--f-activation", "--bad"];

  function options(select, titles, chosen, change) {
    select.replaceChildren(...titles.map(([value, label]) => html("option", { value }, label)));
    select.value = chosen;
    select.addEventListener("change", () => change(select.value));
  }

  function start(root, view) {
    view.colors = {};
    view.order.filter((j) => !view.methods[j].control).forEach((j, i) => { view.colors[j] = `var(${LINE_COLORS[i % LINE_COLORS.length]})`; });
    const shown = new Set(view.few), state = { up: 0, across: "time", pairs: 0, ranks: 0, sizes: 0 };
    const redraw = {};
    const chart = (name, draw) => {
      const box = root.querySelector(`[data-chart="${name}"]`);
      if (!box) return;
      let before = -1;
      redraw[name] = () => { if (box.clientWidth) draw(box); };
      new ResizeObserver(() => {
        if (box.clientWidth === before) return;
        before = box.clientWidth;
        redraw[name]();
      }).observe(box);
    };
    const choose = (axis, key, titles, name) => {
      const select = root.querySelector(`[data-axis="${axis}"]`);
      if (!select) return;
      if (!titles.length) select.closest(".field").hidden = true;
      else options(select, titles, state[key], (value) => { state[key] = value; redraw[name](); });
    };
    const titles = (list) => list.map((item, i) => [i, item.title]);

    const timed = view.seconds.some(known);
    if (!timed) state.across = String(Math.min(1, view.columns.length - 1));
    choose("y", "up", titles(view.columns), "scatter");
    choose("x", "across", [...(timed ? [["time", "time for one image"]] : []), ...titles(view.columns)], "scatter");
    choose("pairs", "pairs", titles(view.pairs), "pairs");
    choose("ranks", "ranks", titles(view.ranks), "ranks");
    choose("sizes", "sizes", titles(view.sizes), "sizes");
    if (view.columns.length) chart("scatter", (box) => scatter(box, view, state));
    if (view.pairs.length) chart("pairs", (box) => pairMatrix(box, view, { on: +state.pairs }));
    else root.querySelector('[data-part="pairs"]').hidden = true;
    if (view.ranks.length) chart("ranks", (box) => rankDiagram(box, view, { on: +state.ranks }));
    chart("agreement", (box) => tauMatrix(box, view.agreement, view));
    chart("protocols", (box) => tauMatrix(box, view.protocols, view));
    if (view.sizes.length) chart("sizes", (box) => {
      const s = view.sizes[+state.sizes];
      const names = box.clientWidth < 560 ? s.names : s.names.map((n, i) => `${n} (${s.counts[i]})`);
      lines(box, view, { title: s.title, names, means: s.means, label: "object covers (images)", shown });
    });
    chart("curves", (box) => {
      if (box.children.length !== view.curves.length) box.replaceChildren(...view.curves.map(() => html("div")));
      view.curves.forEach((c, i) => lines(box.children[i], view, { ...c, means: c.mean, shown }));
    });

    for (const legend of root.querySelectorAll(".legend")) for (const j of view.order) {
      const m = view.methods[j];
      const button = html("button", {
        type: "button", class: kindOf(m).trim(), "data-m": j, "data-f": m.family, "aria-pressed": shown.has(j),
        style: view.colors[j] && `--c:${view.colors[j]}`,
      }, html("i"), m.label);
      button.addEventListener("click", () => {
        if (!shown.delete(j)) shown.add(j);
        for (const same of root.querySelectorAll(`.legend [data-m="${j}"]`)) same.setAttribute("aria-pressed", shown.has(j));
        redraw.curves?.();
        redraw.sizes?.();
      });
      legend.append(button);
    }
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
      for (const k of view.same[j]) root.querySelector(`.board tr[data-m="${k}"]`)?.classList.add("like-lit");
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
    start(views[active], data[active]);
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
