"use strict";
// The page's charts and controls. Own code and no chart library: lines are named at their ends,
// one list of agents steers every chart, and the page stays small enough for a phone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { agents, tracks, bank, laws } = data;
  const tip = document.getElementById("tip");
  const sections = [...document.querySelectorAll(".track")];
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const hidden = new Set();
  let current = 0;
  let kind = "gain";
  const PAPER = 940; // pixels of a chart's width in print
  const KINDS = {
    gain: ["Gain", "Personalisation gain per interaction: 0 is popular, 1 the best response always. Moving average of 5 interactions; bands: 95 %, widened for differences between seeds."],
    score: ["Score", "Normalised score per interaction: 0 is uniform, 1 the best response always. Moving average of 5 interactions; bands: 95 %, widened for differences between seeds."],
    regret: ["Regret", "Cumulative regret: utility of the best response minus that of the one shown, summed per user. Lower is better; bands: 95 %, widened for differences between seeds."],
  };

  // Small tools

  const el = (tag, props = {}, parent = null) => {
    const made = Object.assign(document.createElement(tag), props);
    if (parent) parent.append(made);
    return made;
  };
  const svg = (tag, attributes, parent) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  };
  const minus = (text) => text.replace("-", "\u2212");
  const say = (x, digits) => (x === null ? "\u2013" : minus((Math.round(x * 10 ** digits) / 10 ** digits + 0).toFixed(digits)));
  const brief = (x) => (x === null ? "not measured" : x === 0 ? "0" : x >= 10 ? String(Math.round(x)) : minus(Number(x.toPrecision(2)).toString()));
  const label = (id) => agents[id].name + (agents[id].starred ? " *" : "");
  const ink = canvas2d();
  function canvas2d() {
    const context = document.createElement("canvas").getContext("2d");
    context.font = "12.5px system-ui, sans-serif";
    return context;
  }
  function fitted(text, room) {
    if (ink.measureText(text).width <= room) return text;
    let short = text;
    while (short.length > 2 && ink.measureText(short + "\u2026").width > room) short = short.slice(0, -1);
    return short + "\u2026";
  }
  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) || 10);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) found.push(i * step);
    return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }
  // Places at least gap apart, as near as can be to those wanted (pools of neighbours).
  function spread(wanted, gap, low, high) {
    gap = Math.min(gap, (high - low) / Math.max(wanted.length - 1, 1));
    const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b] || a - b);
    const pools = [];
    order.forEach((i, k) => {
      pools.push([wanted[i] - gap * k, 1]);
      while (pools.length > 1 && pools.at(-2)[0] > pools.at(-1)[0]) {
        const [b, n] = pools.pop(), [a, m] = pools.pop();
        pools.push([(m * a + n * b) / (m + n), m + n]);
      }
    });
    const level = pools.flatMap(([mean, size]) => Array(size).fill(mean));
    const most = high - gap * (wanted.length - 1);
    const out = [];
    order.forEach((i, k) => { out[i] = Math.min(Math.max(level[k], low), Math.max(low, most)) + gap * k; });
    return out;
  }
  // Who sets the scale: all up to a jump to more than double the loss, and at least half of them.
  function near(losses) {
    const order = Object.keys(losses).sort((a, b) => losses[a] - losses[b]);
    for (let i = Math.max(2, Math.ceil(order.length / 2)); i < order.length; i++) {
      const before = losses[order[i - 1]];
      if (before > 0 && losses[order[i]] > 2 * before) return order.slice(0, i);
    }
    return order;
  }
  const average = (xs) => xs.reduce((a, b) => a + (b ?? 0), 0) / Math.max(xs.length, 1);

  // Tooltip and highlighting

  function showTip(text, x, y) {
    if (tip.textContent !== text) tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth - 8 ? x - box.width - 14 : x + 14;
    const top = y - box.height - 12 < 8 ? y + 18 : y - box.height - 12;
    tip.style.left = Math.max(8, Math.min(left, innerWidth - box.width - 8)) + "px";
    tip.style.top = top + "px";
  }
  const hideTip = () => { tip.hidden = true; };
  function light(id) {
    const section = sections[current];
    section.classList.toggle("lit", id !== null && !hidden.has(id));
    for (const mark of section.querySelectorAll("[data-agent]")) {
      const on = id !== null && mark.dataset.agent === String(id);
      mark.classList.toggle("on", on);
      if (on && mark.classList.contains("curve")) mark.parentNode.append(mark); // to the front
    }
  }
  function tips() {
    const open = (event) => {
      const target = event.target.closest?.("[data-tip]");
      if (!target) return;
      const box = target.getBoundingClientRect();
      const mouse = event.type === "pointerover";
      showTip(target.dataset.tip, mouse ? event.clientX : box.left, mouse ? event.clientY : box.top);
    };
    const close = (event) => { if (event.target.closest?.("[data-tip]")) hideTip(); };
    document.addEventListener("pointerover", open);
    document.addEventListener("focusin", (e) => { if (e.target.matches(":focus-visible")) open(e); });
    document.addEventListener("pointerout", close);
    document.addEventListener("focusout", close);
    document.addEventListener("keydown", (e) => { if (e.key === "Escape") { hideTip(); light(null); } });
    addEventListener("scroll", hideTip, { passive: true });
  }

  // Marks

  const SHAPES = [
    (r) => `M${-r},0A${r},${r} 0 1 0 ${r},0A${r},${r} 0 1 0 ${-r},0Z`,
    (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
    (r) => `M0,${-r * 1.2}L${r * 1.1},${r}H${-r * 1.1}Z`,
    (r) => `M0,${-r * 1.3}L${r * 1.3},0L0,${r * 1.3}L${-r * 1.3},0Z`,
    (r) => `M0,${r * 1.2}L${r * 1.1},${-r}H${-r * 1.1}Z`,
  ];
  function marker(id, x, y, parent, r = 3.4) {
    const mark = svg("path", { d: SHAPES[Math.max(agents[id].marker, 0)](r), transform: `translate(${x},${y})`, stroke: "var(--ground)", "stroke-width": 1 }, parent);
    mark.style.fill = `var(--a${id})`;
    return mark;
  }
  function stroked(id, path) {
    path.style.stroke = `var(--a${id})`;
    path.classList.add("line");
    if (agents[id].dash) { path.setAttribute("stroke-dasharray", agents[id].dash); path.classList.add("dashed"); }
    if (agents[id].wide) path.classList.add("thick");
  }
  function swatches(root) {
    for (const place of root.querySelectorAll("[data-swatch]")) {
      const id = Number(place.dataset.swatch);
      const picture = svg("svg", { viewBox: "0 0 20 10", width: "100%", height: 10, "aria-hidden": "true" }, place);
      stroked(id, svg("path", { d: "M0,5H20" }, picture));
      if (agents[id].marker >= 0) marker(id, 10, 5, picture);
    }
  }

  // Learning curves

  function limits(track, shown) {
    const curves = track.curves[kind];
    const values = (id) => curves[id][0].filter((x) => x !== null);
    const band = (id) => curves[id][0].flatMap((x, i) => (x === null ? [] : [x + (curves[id][1][i] ?? 0)]));
    if (kind === "regret") {
      const losses = Object.fromEntries(shown.map((id) => [id, values(id).at(-1) ?? 0]));
      const top = Math.max(...near(losses).flatMap(band), 1e-3);
      return [0, 1.04 * top];
    }
    // Honest agents set the scale: of the gain those who are not worse than popular, of the
    // score all up to a jump. Privileged ones join while they leave the others most of the room.
    const honest = shown.filter((id) => !agents[id].starred);
    const mean = (id) => average(values(id));
    let close = honest.filter((id) => kind !== "gain" || mean(id) > -0.02);
    if (close.length < 2) close = honest.length ? honest : shown;
    if (kind === "score") close = near(Object.fromEntries(close.map((id) => [id, 1 - mean(id)]))).map(Number);
    let high = Math.max(...close.flatMap(band));
    let low = Math.min(...close.flatMap(values));
    low = Math.max(low, Math.min(0, high - 2.5 * Math.max(0.02, ...close.map((id) => high - mean(id)))));
    for (const id of shown.filter((i) => agents[i].starred).sort((x, y) => mean(x) - mean(y))) {
      const top = Math.max(...band(id));
      if (top - low > 1.6 * (high - low)) break;
      high = Math.max(high, top);
    }
    const room = Math.max(high - low, 1e-3);
    return [low - 0.05 * room, high + 0.04 * room];
  }
  function path(points) {
    let text = "", open = false;
    for (const [x, y] of points) {
      if (y === null) { open = false; continue; }
      text += (open ? "L" : "M") + x.toFixed(1) + "," + y.toFixed(1);
      open = true;
    }
    return text;
  }
  function curvesChart(box, track, width) {
    const curves = track.curves[kind];
    const shown = track.order.filter((id) => !hidden.has(id) && curves[id]);
    box.replaceChildren();
    if (!shown.length) { el("p", { className: "empty", textContent: "No agent is chosen." }, box); return; }
    const small = width < 560;
    const room = Math.max(...shown.map((id) => ink.measureText(label(id)).width)) + 4;
    const names = Math.min(room + (kind === "regret" ? 38 : 8), small ? 0.36 * width : 230);
    const edge = { left: 40, right: names + 20, top: 10, bottom: 36 };
    const height = Math.max(small ? 360 : 430, shown.length * 15 + edge.top + edge.bottom);
    const right = width - edge.right, bottom = height - edge.bottom;
    const [low, high] = limits(track, shown);
    const last = track.t.at(-1), span = Math.max(last - 1, 1);
    const X = (t) => edge.left + ((t - 1) / span) * (right - edge.left);
    const Y = (v) => bottom - ((v - low) / (high - low)) * (bottom - edge.top);
    const root = svg("svg", { width, height, class: "hover", tabindex: 0, role: "img", "aria-label": `${KINDS[kind][0]} of ${shown.length} agents on ${track.name}. Arrow keys read values.` }, box);
    const clip = `clip-${current}`;
    svg("rect", { x: edge.left, y: edge.top - 2, width: right - edge.left + 1, height: bottom - edge.top + 4 }, svg("clipPath", { id: clip }, svg("defs", {}, root)));
    axes(root, { low, high, last, X, Y, right, bottom, edge, small });
    const all = svg("g", {}, root);
    for (const id of [...shown].reverse()) {
      const [middle, half] = curves[id];
      const group = svg("g", { "data-agent": id, class: "curve" }, all);
      const inside = svg("g", { "clip-path": `url(#${clip})` }, group);
      const at = (sign) => middle.map((v, i) => [X(track.t[i]), v === null ? null : Y(v + sign * (half[i] ?? 0))]);
      if (half.some((h) => h)) {
        const around = [...at(1), ...at(-1).reverse()].filter((p) => p[1] !== null);
        svg("path", { d: path(around) + "Z", class: "band" }, inside).style.fill = `var(--a${id})`;
      }
      stroked(id, svg("path", { d: path(at(0)) }, inside));
      if (agents[id].marker >= 0 || middle.length === 1) {
        const step = Math.max(1, Math.round(middle.length / (small ? 4 : 6)));
        for (let i = (shown.indexOf(id) * 2) % step; i < middle.length; i += step) {
          const y = middle[i] === null ? null : Y(middle[i]);
          if (y !== null && y >= edge.top && y <= bottom) marker(id, X(track.t[i]), y, inside);
        }
      }
    }
    endLabels(root, { shown, curves, Y, low, high, right, bottom, edge, names });
    readable(root, { track, shown, curves, X, Y, right, edge, bottom });
  }
  function axes(root, { low, high, last, X, Y, right, bottom, edge, small }) {
    const up = ticks(low, high, 9);
    for (const v of up.found) {
      svg("line", { x1: edge.left, x2: right, y1: Y(v), y2: Y(v), class: "gridline" }, root);
      svg("text", { x: edge.left - 7, y: Y(v) + 4, "text-anchor": "end" }, root).textContent = say(v, up.digits);
    }
    if (kind !== "regret" && low < 0) svg("line", { x1: edge.left, x2: right, y1: Y(0), y2: Y(0), class: "reference", "stroke-dasharray": "1 3" }, root);
    svg("line", { x1: edge.left, x2: right, y1: bottom, y2: bottom, class: "axis" }, root);
    const along = ticks(1, last, small ? 4 : 8).found.filter((t) => t % 1 === 0 && t > 1 + last / 20);
    for (const t of [1, ...along]) svg("text", { x: X(t), y: bottom + 16, "text-anchor": "middle" }, root).textContent = t;
    svg("text", { x: (edge.left + right) / 2, y: bottom + 32, "text-anchor": "middle" }, root).textContent = "interaction";
  }
  function endLabels(root, { shown, curves, Y, low, high, right, bottom, edge, names }) {
    const end = (id) => curves[id][0].at(-1);
    const sorted = [...shown].sort((a, b) => (end(b) ?? -1e9) - (end(a) ?? -1e9));
    const wanted = sorted.map((id) => (end(id) === null ? bottom : Math.min(Math.max(Y(end(id)), edge.top), bottom)));
    const places = spread(wanted, 15, edge.top, bottom);
    sorted.forEach((id, i) => {
      const value = end(id), out = value === null || value > high || value < low;
      const group = svg("g", { "data-agent": id, class: "end" }, root);
      if (!out) {
        const link = svg("path", { d: `M${right},${wanted[i]}L${right + 14},${places[i]}`, class: "lead-line" }, group);
        link.style.stroke = `var(--a${id})`;
      }
      const tail = out || kind === "regret" ? " " + say(value, Math.abs(value) >= 10 ? 1 : 2) : "";
      const arrow = out ? (value > high ? "\u2191 " : "\u2193 ") : "";
      const text = svg("text", { x: right + 17, y: places[i] + 4, class: "name" + (agents[id].starred ? " starred" : "") }, group);
      text.style.fill = `var(--n${id})`;
      text.textContent = arrow + fitted(label(id), names - ink.measureText(tail + arrow).width) + tail;
      group.addEventListener("pointerenter", () => light(id));
      group.addEventListener("pointerleave", () => light(null));
    });
  }
  function readable(root, { track, shown, curves, X, Y, right, edge, bottom }) {
    const line = svg("line", { y1: edge.top, y2: bottom, class: "reference", visibility: "hidden" }, root);
    const dot = svg("circle", { r: 5, fill: "none", "stroke-width": 2.5, visibility: "hidden" }, root);
    let at = 0, who = shown[0];
    const show = (x, y) => {
      const [middle, half] = curves[who];
      const value = middle[at], h = half[at];
      const box = root.getBoundingClientRect();
      line.setAttribute("x1", X(track.t[at]));
      line.setAttribute("x2", X(track.t[at]));
      line.setAttribute("visibility", "visible");
      const place = value === null ? bottom : Math.min(Math.max(Y(value), edge.top), bottom);
      dot.setAttribute("cx", X(track.t[at]));
      dot.setAttribute("cy", place);
      dot.setAttribute("visibility", "visible");
      dot.style.stroke = `var(--a${who})`;
      light(who);
      const digits = kind === "regret" ? 2 : 3;
      const range = h === null ? "" : ` \u00b1 ${h.toFixed(digits)}`;
      showTip(`${label(who)}\ninteraction ${track.t[at]}: ${say(value, digits)}${range}`, x ?? box.left + X(track.t[at]), y ?? box.top + place);
    };
    const move = (event) => {
      const box = root.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      if (x > right + 6) { leave(); return; }
      at = track.t.reduce((best, t, i) => (Math.abs(X(t) - x) < Math.abs(X(track.t[best]) - x) ? i : best), 0);
      const far = (id) => (curves[id][0][at] === null ? Infinity : Math.abs(Y(curves[id][0][at]) - y));
      who = shown.reduce((best, id) => (far(id) < far(best) ? id : best));
      show(event.clientX, event.clientY);
    };
    const leave = () => {
      line.setAttribute("visibility", "hidden");
      dot.setAttribute("visibility", "hidden");
      light(null);
      hideTip();
    };
    root.addEventListener("pointermove", move);
    root.addEventListener("pointerdown", move);
    root.addEventListener("pointerleave", leave);
    root.addEventListener("blur", leave);
    root.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!steps) return;
      event.preventDefault();
      at = Math.min(Math.max(at + steps[0], 0), track.t.length - 1);
      const order = [...shown].sort((a, b) => (curves[b][0][at] ?? -1e9) - (curves[a][0][at] ?? -1e9));
      const place = order.indexOf(who) + steps[1] * (kind === "regret" ? -1 : 1);
      who = order[Math.min(Math.max(place, 0), order.length - 1)];
      show();
    });
  }

  // Charts with a row per agent

  function rowChart(box, width, rows, { low, high, log = false, reference = null, draw, words, unit = "" }) {
    box.replaceChildren();
    if (!rows.length) { el("p", { className: "empty", textContent: "Nothing to show for the agents that are chosen." }, box); return; }
    const widest = Math.max(...rows.map(({ id }) => ink.measureText(label(id)).width));
    const left = Math.min(widest + 14, 0.4 * width), right = width - 16, step = 21;
    const height = rows.length * step + 34, bottom = height - 28;
    const scale = log ? Math.log10 : (x) => x;
    const inner = (v) => left + ((scale(v) - scale(low)) / (scale(high) - scale(low) || 1)) * (right - left);
    const X = (v) => Math.min(Math.max(inner(Math.max(v, log ? low : v)), left), right);
    const root = svg("svg", { width, height, role: "img", "aria-label": rows.map(({ id, value }) => `${label(id)}: ${words(value).replaceAll("\n", ", ")}`).join("; ") }, box);
    const marks = log ? powers(low, high) : ticks(low, high, width < 420 ? 4 : 6);
    for (const v of marks.found) {
      svg("line", { x1: X(v), x2: X(v), y1: 0, y2: bottom, class: "gridline" }, root);
      svg("text", { x: X(v), y: bottom + 16, "text-anchor": "middle" }, root).textContent = log ? brief(v) + unit : say(v, marks.digits) + unit;
    }
    if (reference !== null) svg("line", { x1: X(reference), x2: X(reference), y1: 0, y2: bottom, class: "reference" }, root);
    rows.forEach(({ id, value }, i) => {
      const y = i * step + step / 2;
      const group = svg("g", { "data-agent": id }, root);
      const text = svg("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: "name" + (agents[id].starred ? " starred" : "") }, group);
      text.style.fill = `var(--n${id})`;
      text.textContent = fitted(label(id), left - 12);
      draw(group, value, X, y, id, { low, high, left, right });
      const area = svg("rect", { x: 0, y: i * step, width, height: step, fill: "transparent" }, group);
      const open = (event) => { light(id); showTip(`${label(id)}\n${words(value)}`, event.clientX, event.clientY); };
      area.addEventListener("pointermove", open);
      area.addEventListener("pointerdown", open);
      area.addEventListener("pointerleave", () => { light(null); hideTip(); });
    });
  }
  function powers(low, high) {
    const found = [];
    for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) found.push(10 ** p);
    return { found };
  }
  const bar = (group, id, x1, x2, y, thick, opacity = 1) => {
    const line = svg("line", { x1, x2, y1: y, y2: y, "stroke-width": thick, opacity }, group);
    line.style.stroke = `var(--a${id})`;
  };
  const beyond = (group, id, y, edge, sign) => {
    const mark = svg("path", { d: `M${edge - 6 * sign},${y - 4}L${edge},${y}L${edge - 6 * sign},${y + 4}`, fill: "none", "stroke-width": 2 }, group);
    mark.style.stroke = `var(--a${id})`;
  };
  const rowsOf = (track, values) => track.order.filter((id) => !hidden.has(id) && values[id]).map((id) => ({ id, value: values[id] }));

  function usersChart(box, track, width) {
    const rows = rowsOf(track, track.users);
    const close = near(Object.fromEntries(rows.map(({ id, value }) => [id, value[6]])));
    const high = 1.03 * Math.max(1e-3, ...close.map((id) => Math.max(track.users[id][4], track.users[id][5])));
    rowChart(box, width, rows, {
      low: 0, high,
      draw: (group, q, X, y, id, { right }) => {
        bar(group, id, X(q[0]), X(q[4]), y, 1.6, 0.85);
        bar(group, id, X(q[1]), X(q[3]), y, 9, 0.45);
        const median = svg("line", { x1: X(q[2]), x2: X(q[2]), y1: y - 7, y2: y + 7, "stroke-width": 2.4 }, group);
        median.style.stroke = `var(--a${id})`;
        if (q[5] <= high) {
          const worst = svg("path", { d: SHAPES[3](3.6), transform: `translate(${X(q[5])},${y})`, "stroke-width": 1.8 }, group);
          worst.style.stroke = `var(--a${id})`;
          worst.style.fill = "var(--ground)";
        }
        if (Math.max(q[4], q[5]) > high) beyond(group, id, y, right + 4, 1);
      },
      words: (q) => `median ${say(q[2], 2)}, mean ${say(q[6], 2)}\nmiddle half ${say(q[1], 2)} to ${say(q[3], 2)}\n5th to 95th percentile ${say(q[0], 2)} to ${say(q[4], 2)}\nworst tenth: mean ${say(q[5], 2)}`,
    });
  }
  function sharesChart(box, track, width) {
    if (!Object.keys(track.shares).length) {
      const there = track.order.some((id) => agents[id].name === track.yardstick);
      const why = there ? "its gain is not clearly above 0" : "it took no part";
      box.replaceChildren(el("p", { className: "empty", textContent: `No shares: ${why}.` }));
      return;
    }
    const rows = rowsOf(track, track.shares);
    const close = near(Object.fromEntries(rows.map(({ id, value }) => [id, Math.max(0, 1 - value[0])])));
    const ends = close.flatMap((id) => track.shares[id]).filter((x) => x !== null).map((x) => 100 * x);
    const low = Math.max(-100, Math.min(0, ...ends)), high = Math.max(100, ...ends);
    rowChart(box, width, rows, {
      low: low - 0.03 * (high - low), high: high + 0.02 * (high - low), reference: 0, unit: " %",
      draw: (group, q, X, y, id, { low: from, left }) => {
        const [value, a, b] = q.map((x) => (x === null ? null : 100 * x));
        if (value < from) { beyond(group, id, y, left, -1); return; }
        bar(group, id, X(0), X(value), y, 2, 0.35);
        if (a !== null) bar(group, id, X(a), X(b), y, 5, 0.55);
        marker(id, X(value), y, group, 4);
      },
      words: ([value, a, b]) => `${say(100 * value, 1)} %` + (a === null ? "" : ` (95 %: ${say(100 * a, 1)} to ${say(100 * b, 1)})`),
    });
  }
  function costChart(box, track, width, columns, words) {
    const rows = rowsOf(track, track.cost);
    const all = rows.flatMap(({ value }) => columns.map((c) => value[c])).filter((x) => x > 0);
    const low = all.length ? 10 ** Math.floor(Math.log10(Math.min(...all)) - 1e-9) : 1;
    const high = all.length ? 10 ** Math.ceil(Math.log10(Math.max(...all)) + 1e-9) : 10;
    rowChart(box, width, rows, {
      low, high, log: true,
      draw: (group, cost, X, y, id) => {
        columns.forEach((c, i) => {
          if (cost[c] === null) return;
          const dot = svg("circle", { cx: X(cost[c]), cy: y, r: 4.2, "stroke-width": 1.8 }, group);
          dot.style.stroke = `var(--a${id})`;
          dot.style.fill = i ? "var(--ground)" : `var(--a${id})`;
        });
      },
      words,
    });
  }

  // The bank's panels

  function bankChart(box, width) {
    box.replaceChildren();
    ({ top: topChart, winners: winnersChart, wins: winsChart })[box.dataset.bank](box, width);
  }
  function framed(box, width, height, left, bottomRoom, says) {
    return { root: svg("svg", { width, height, role: "img", "aria-label": says }, box), left, right: width - 14, top: 8, bottom: height - bottomRoom };
  }
  function upAxis({ root, left, right, top, bottom }, high) {
    const Y = (v) => bottom - (v / high) * (bottom - top);
    for (const v of ticks(0, high, 5).found) {
      svg("line", { x1: left, x2: right, y1: Y(v), y2: Y(v), class: "gridline" }, root);
      svg("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, root).textContent = v;
    }
    return Y;
  }
  function topChart(box, width) {
    const frame = framed(box, width, 250, 34, 38, "Share of prompts by the share of votes of the top response");
    const { root, left, right, bottom } = frame;
    const Y = upAxis(frame, 100), first = bank.grid[0];
    const X = (s) => left + ((s - first) / (1 - first)) * (right - left);
    for (const s of [0.2, 0.4, 0.6, 0.8, 1]) svg("text", { x: X(s), y: bottom + 16, "text-anchor": "middle" }, root).textContent = Math.round(100 * s) + " %";
    svg("text", { x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle" }, root).textContent = "share of the votes";
    laws.forEach((law, i) => {
      const line = svg("path", { d: path(bank.grid.map((s, j) => [X(s), Y(bank.laws[law].top[j])])), class: "line" }, root);
      line.style.stroke = `var(--law${i})`;
    });
    laws.forEach((law, i) => bank.published.top[law].forEach((value, j) => {
      const share = [0.5, 0.75, 0.95][j];
      const own = bank.laws[law].top[bank.grid.findIndex((s) => Math.abs(s - share) < 1e-6)];
      const mark = svg("circle", { cx: X(share), cy: Y(value), r: 4.5, class: "pubmark", "data-tip": `Dirichlet ${law}, at most ${Math.round(100 * share)} % of the votes\nthis bank ${say(own, 1)} %, published ${say(value, 1)} %` }, root);
      mark.style.stroke = `var(--law${i})`;
    }));
  }
  function winnersChart(box, width) {
    const frame = framed(box, width, 250, 34, 38, "Histogram of the number of responses with a vote");
    const { root, left, right, bottom } = frame;
    const names = ["\u2264 2", "3", "4", "5", "\u2265 6"];
    const high = 1.06 * Math.max(...laws.flatMap((law) => [...bank.laws[law].winners, ...bank.published.winners[law]]));
    const Y = upAxis(frame, high), slot = (right - left) / names.length, wide = (0.76 * slot) / laws.length;
    names.forEach((name, k) => {
      svg("text", { x: left + (k + 0.5) * slot, y: bottom + 16, "text-anchor": "middle" }, root).textContent = name;
      laws.forEach((law, i) => {
        const x = left + k * slot + 0.12 * slot + i * wide, value = bank.laws[law].winners[k], paper = bank.published.winners[law][k];
        const group = svg("g", { "data-tip": `${name} winners, Dirichlet ${law}\nthis bank ${say(value, 1)} %, published ${say(paper, 1)} %` }, root);
        svg("rect", { x, y: Y(value), width: wide - 2, height: bottom - Y(value) }, group).style.fill = `var(--law${i})`;
        svg("line", { x1: x - 1, x2: x + wide - 1, y1: Y(paper), y2: Y(paper), class: "pubmark" }, group);
      });
    });
    svg("text", { x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle" }, root).textContent = "responses with a vote";
  }
  function winsChart(box, width) {
    const names = bank.responders.map((name) => name.split("/").at(-1));
    const left = Math.min(Math.max(...names.map((name) => ink.measureText(name).width)) + 14, 0.46 * width);
    const step = 29, frame = framed(box, width, names.length * step + 26, left, 26, "Share of all votes per responder");
    const { root, right, bottom } = frame;
    const paper = (law, k) => bank.published.wins[law]?.[k] ?? null;
    const high = 1.05 * Math.max(...laws.flatMap((law) => names.map((_, k) => Math.max(bank.laws[law].wins[k], paper(law, k) ?? 0))));
    const X = (v) => left + (v / high) * (right - left);
    for (const v of ticks(0, high, 4).found) {
      svg("line", { x1: X(v), x2: X(v), y1: 0, y2: bottom, class: "gridline" }, root);
      svg("text", { x: X(v), y: bottom + 17, "text-anchor": "middle" }, root).textContent = v;
    }
    names.forEach((name, k) => {
      const text = svg("text", { x: left - 8, y: k * step + step / 2 + 4, "text-anchor": "end", class: "name" }, root);
      text.textContent = fitted(name, left - 10);
      laws.forEach((law, i) => {
        const y = k * step + 3 + i * 8, value = bank.laws[law].wins[k], known = paper(law, k);
        const words = known === null ? "" : `, published ${say(known, 1)} %`;
        const group = svg("g", { "data-tip": `${bank.responders[k]}, Dirichlet ${law}\nthis bank ${say(value, 1)} %${words}` }, root);
        svg("rect", { x: left, y, width: X(value) - left, height: 6.5 }, group).style.fill = `var(--law${i})`;
        if (known !== null) svg("line", { x1: X(known), x2: X(known), y1: y - 1, y2: y + 7.5, class: "pubmark" }, group);
      });
    });
  }

  // The page

  function draw(only = current, paper = 0) {
    const section = sections[only], track = tracks[only];
    const width = (box) => paper || box.clientWidth || 640;
    if (!track.curves[kind]) kind = Object.keys(track.curves)[0];
    const chart = (name) => section.querySelector(`[data-chart=${name}]`);
    section.querySelector("figcaption .what").textContent = KINDS[kind][1];
    kinds(section.querySelector(".kinds"), track);
    curvesChart(chart("curves"), track, width(chart("curves")));
    usersChart(chart("users"), track, width(chart("users")));
    sharesChart(chart("shares"), track, width(chart("shares")));
    costChart(chart("cost0"), track, width(chart("cost0")), [0], ([us]) => `${brief(us)} \u00b5s per decision`);
    costChart(chart("cost1"), track, width(chart("cost1")), [1, 2], ([, fit, memory]) => `fit ${brief(fit)}${fit === null ? "" : " s"}\nmemory ${brief(memory)}${memory === null ? "" : " MB"}`);
  }
  function drawBank(paper = 0) {
    for (const box of document.querySelectorAll("[data-bank]")) bankChart(box, paper || box.clientWidth || 640);
  }
  function kinds(place, track) {
    if (!place.children.length) {
      for (const [key, [name]] of Object.entries(KINDS)) {
        const button = el("button", { type: "button", textContent: name }, place);
        button.dataset.kind = key;
        button.addEventListener("click", () => { kind = key; draw(); });
      }
    }
    for (const button of place.children) {
      button.disabled = !track.curves[button.dataset.kind];
      button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
    }
  }
  const legend = el("details", { className: "legend", open: innerWidth > 800 });
  function buildLegend() {
    const summary = el("summary", { textContent: "Agents " }, legend);
    el("span", { className: "count" }, summary);
    const quick = el("div", { className: "quick" }, legend);
    const choices = { all: () => true, none: () => false, honest: (id) => !agents[id].starred, leaders: (id) => tracks[current].tied.includes(id) };
    for (const [name, keep] of Object.entries(choices)) {
      el("button", { type: "button", textContent: name }, quick).addEventListener("click", () => {
        hidden.clear();
        agents.forEach((_, id) => { if (!keep(id)) hidden.add(id); });
        refresh();
      });
    }
    const chips = el("div", { className: "chips", role: "group", ariaLabel: "Agents shown in the charts" }, legend);
    agents.forEach((agent, id) => {
      const button = el("button", { type: "button", title: agent.name }, chips);
      button.dataset.agent = id;
      button.classList.toggle("starred", agent.starred);
      const swatch = el("span", { className: "swatch" }, button);
      swatch.dataset.swatch = id;
      el("span", { textContent: label(id) }, button);
      button.addEventListener("click", () => {
        if (!hidden.delete(id)) hidden.add(id);
        refresh();
      });
      for (const [on, off] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
        button.addEventListener(on, () => light(id));
        button.addEventListener(off, () => light(null));
      }
    });
  }
  function refresh() {
    const there = new Set(tracks[current].order);
    for (const button of legend.querySelectorAll("[data-agent]")) {
      const id = Number(button.dataset.agent);
      button.setAttribute("aria-pressed", String(!hidden.has(id)));
      button.hidden = !there.has(id);
    }
    const shown = tracks[current].order.filter((id) => !hidden.has(id)).length;
    legend.querySelector(".count").textContent = `${shown} of ${there.size} shown`;
    draw();
  }
  function choose(index) {
    light(null);
    hideTip();
    current = index;
    sections.forEach((section, i) => section.classList.toggle("current", i === index));
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
    });
    const strip = tabs[index].parentElement;
    strip.scrollLeft = tabs[index].offsetLeft - strip.offsetLeft - (strip.clientWidth - tabs[index].clientWidth) / 2;
    sections[index].querySelector(".legend-place").append(legend);
    refresh();
  }
  function routes() {
    const follow = () => {
      const index = sections.findIndex((section) => "#" + section.id === decodeURIComponent(location.hash));
      if (index < 0) return;
      choose(index);
      document.getElementById("tracks").scrollIntoView();
    };
    addEventListener("hashchange", follow);
    tabs.forEach((tab, i) => {
      tab.addEventListener("click", () => {
        history.replaceState(null, "", "#" + sections[i].id);
        const place = document.getElementById("tracks");
        choose(i);
        if (place.getBoundingClientRect().top < 0) place.scrollIntoView();
      });
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const next = tabs[(i + step + tabs.length) % tabs.length];
        next.focus();
        next.click();
      });
    });
    choose(0);
    follow();
  }
  function sorting() {
    for (const table of document.querySelectorAll(".standings")) {
      const heads = [...table.tHead.rows[0].cells];
      heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
        const first = head.dataset.down === "1" ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const way = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way);
        for (const body of table.tBodies) body.append(...[...body.rows].sort(order(column, way)));
      }));
      table.addEventListener("pointerover", (event) => {
        const row = event.target.closest("tr[data-agent]");
        light(row ? Number(row.dataset.agent) : null);
      });
      table.addEventListener("pointerleave", () => light(null));
    }
  }
  function order(column, way) {
    const sign = way === "ascending" ? 1 : -1;
    return (a, b) => {
      const [x, y] = [a, b].map((row) => row.cells[column].dataset.v);
      if (column === 0) return sign * x.localeCompare(y);
      if (x === "" || y === "") return (x === "") - (y === ""); // what is missing is last
      return sign * (Number(x) - Number(y));
    };
  }
  function sizes() {
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth === width) return; // a phone's address bar comes and goes
      if (width <= 800 && innerWidth > 800) legend.open = true;
      width = innerWidth;
      draw();
      drawBank();
    });
    addEventListener("beforeprint", () => {
      document.body.classList.remove("js"); // every track is printed
      sections.forEach((_, i) => draw(i, PAPER));
      drawBank(PAPER);
    });
    addEventListener("afterprint", () => {
      document.body.classList.add("js");
      draw();
      drawBank();
    });
  }

  document.body.classList.add("js");
  buildLegend();
  swatches(document);
  swatches(legend);
  tips();
  sorting();
  routes();
  drawBank();
  sizes();
})();
