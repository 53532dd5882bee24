"use strict";
// The map: what `interactive.py` wrote into #data, drawn with regl-scatterplot (WebGL). No network, no other library.

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const GREY = data.colours.length; // the colour of unknown values, after the 256 of the scale,
const STAR = GREY + 1; // of networks that are drawn in,
const CLASSES = GREY + 2; // and of labels, which have no order

function decode(text, Type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Type(bytes.buffer);
}

// Columns come by network, or by recipe where all networks of a recipe share them; `value` sees no difference.
for (const source of data.sources) {
  source.recipe = decode(source.recipe, Int32Array);
  for (const column of source.columns) {
    column.data = decode(column.data, column.labels ? Int32Array : Float32Array);
    const unknown = column.labels ? -1 : NaN; // of networks that are drawn in
    column.at = (i) => column.data[column.by === "recipe" ? source.recipe[i] : i] ?? unknown;
    if (column.labels) column.rank = ranks(column, source);
    column.text = (i) => {
      const value = column.at(i);
      if (column.labels) return value < 0 ? "" : column.labels[value];
      return Number.isNaN(value) ? "" : show(value);
    };
  }
  source.target = source.columns.find((column) => column.name === source.target);
}
for (const map of data.maps) {
  map.source = data.sources[map.source];
  for (const [name, type] of [["x", Float32Array], ["y", Float32Array], ["near", Int32Array], ["far", Float32Array]])
    map[name] = decode(map[name], type);
}

// Which of the palette's colours a label has: the commonest ones have one each, the others none (-1).
function ranks(column, source) {
  const counts = column.labels.map(() => 0);
  for (let i = 0; i < source.recipe.length; i++) if (column.at(i) >= 0) counts[column.at(i)]++;
  const order = counts.map((_, code) => code).sort((a, b) => counts[b] - counts[a]);
  const rank = counts.map(() => -1);
  order.slice(0, data.palette.length).forEach((code, place) => { rank[code] = place; });
  return rank;
}

function show(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 0.001 && size < 10000 ? value.toFixed(3) : value.toExponential(1);
}

const state = { map: null, colour: null, chosen: -1, hovered: -1, drawn: 0, kept: null, lassoed: null, hidden: new Map(), ranges: new Map() };
const picture = element("picture");

// The library's own context asks for multisampling and a kept buffer, which takes twice as long without a graphics card
// and shows nothing: its shader smooths the points already.
function renderer() {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl", { antialias: false });
  if (!gl) document.body.textContent = "This map needs WebGL, which this browser does not have or has switched off.";
  const wanted = ["OES_texture_float", "OES_element_index_uint", "WEBGL_color_buffer_float", "EXT_float_blend"];
  const extensions = wanted.filter((name) => gl.getExtension(name));
  const made = reglScatterplot.createRenderer({ canvas, regl: reglScatterplot.createREGL({ gl, extensions }) });
  const whole = () => made.resize(innerWidth, innerHeight); // the library does this for a canvas of its own only
  whole();
  addEventListener("resize", whole);
  return made;
}

const scatterplot = reglScatterplot.createScatterplot({
  renderer: renderer(),
  canvas: element("points"),
  width: "auto",
  height: "auto",
  actionKeyMap: { lasso: "shift" }, // and no turning
  backgroundColor: data.ground,
  pointColor: [...data.colours, data.grey, data.mark, ...data.palette],
  pointColorActive: data.mark,
  pointColorHover: data.mark,
  colorBy: "valueA",
  pointOutlineWidth: 1,
  pointSizeSelected: 3,
  lassoInitiator: false,
});

// The position of each value on the scale, 0 to 255; GREY where it is unknown.
function scale(source, column) {
  const count = state.map.x.length;
  const positions = new Float32Array(count);
  if (column.labels) {
    for (let i = 0; i < count; i++) {
      const rank = column.at(i) < 0 ? -1 : column.rank[column.at(i)];
      positions[i] = i >= source.recipe.length ? STAR : rank < 0 ? GREY : CLASSES + rank;
    }
    return positions;
  }
  const [low, high] = ends(column, count);
  for (let i = 0; i < count; i++) {
    const value = transform(column, column.at(i));
    positions[i] = i >= source.recipe.length ? STAR : Number.isNaN(value)
      ? GREY
      : Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low || 1))));
  }
  return positions;
}

const words = (name) => name.replaceAll("_", " ");
const transform = (column, value) => (column.log ? Math.log10(value) : value);

// [0, 1] for accuracies, so that maps can be compared, else all values but the outermost 1 %.
function ends(column, count) {
  if (column.name.endsWith("accuracy")) return [0, 1];
  if (!column.ends) {
    const values = [];
    for (let i = 0; i < count; i++) {
      const value = transform(column, column.at(i));
      if (Number.isFinite(value)) values.push(value);
    }
    values.sort((a, b) => a - b);
    column.ends = values.length ? [values[Math.floor(values.length * 0.01)], values[Math.ceil(values.length * 0.99) - 1]] : [0, 1];
  }
  return column.ends;
}

let drawing = Promise.resolve(); // one picture after another
function drawMap() {
  drawing = drawing.then(draw, draw);
  return drawing;
}

async function draw() {
  const map = state.map;
  const size = Math.min(8, Math.max(1.6, 420 / Math.sqrt(map.x.length)));
  scatterplot.set({ pointSize: size, opacity: map.x.length > 20000 ? 0.75 : 0.95 });
  scatterplot.set({ aspectRatio: picture.clientWidth / Math.max(1, picture.clientHeight) }); // fills whatever screen
  const values = scale(map.source, state.colour);
  await scatterplot.draw(
    { x: map.x, y: map.y, valueA: values },
    { zDataType: "categorical", spatialIndex: map.spatialIndex },
  );
  map.spatialIndex = scatterplot.get("spatialIndex");
  state.painted = true;
  legend();
  filter();
}

function legend() {
  const column = state.colour;
  const box = element("legend");
  box.replaceChildren(text("div", words(column.name)));
  if (column.labels) {
    const hidden = state.hidden.get(column) ?? new Set();
    const shown = column.labels.map((_, code) => code).filter((code) => column.rank[code] >= 0);
    for (const code of shown.sort((a, b) => column.rank[a] - column.rank[b])) {
      const item = text("button", column.labels[code]);
      item.type = "button";
      item.title = "show or hide";
      item.setAttribute("aria-pressed", String(!hidden.has(code)));
      const dot = document.createElement("i");
      dot.style.background = data.palette[column.rank[code]];
      item.prepend(dot);
      item.addEventListener("click", () => {
        if (!hidden.delete(code)) hidden.add(code);
        state.hidden.set(column, hidden);
        item.setAttribute("aria-pressed", String(!hidden.has(code)));
        filter();
      });
      box.append(item);
    }
    if (column.labels.length > shown.length) box.append(text("div", `${column.labels.length - shown.length} rarer ones are grey`, "soft"));
    return;
  }
  const bar = text("div", "", "bar");
  bar.style.background = `linear-gradient(to right, ${data.colours.filter((_, i) => i % 15 === 0).join(",")})`;
  const [low, high] = ends(column, state.map.x.length).map((end) => text("span", show(column.log ? 10 ** end : end)));
  box.append(low, bar, high);
}

// A histogram with two sliders for each of these columns.
function filters() {
  const wanted = [state.map.source.target, state.map.source.columns.find((column) => column.name === "epoch"), state.colour];
  const columns = [...new Set(wanted)].filter((column) => column && !column.labels);
  element("filters").replaceChildren(...columns.map((column, number) => {
    const box = text("fieldset", "", "filter");
    const name = text("legend", "");
    const canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    const sliders = ["low", "high"].map((side) => {
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", min: 0, max: 1000, id: number ? "" : side });
      slider.value = Math.round(1000 * (state.ranges.get(column) ?? [0, 1])[side === "low" ? 0 : 1]);
      slider.setAttribute("aria-label", `${words(column.name)}: at ${side === "low" ? "least" : "most"}`);
      return slider;
    });
    const moved = () => {
      const range = sliders.map((slider) => slider.value / 1000);
      if (range[0] === 0 && range[1] === 1) state.ranges.delete(column);
      else state.ranges.set(column, range);
      name.textContent = `${words(column.name)} ${bounds(column).map((value) => show(column.log ? 10 ** value : value)).join(" to ")}`;
      bars(canvas, column);
    };
    sliders.forEach((slider, side) => slider.addEventListener("input", () => {
      const other = sliders[1 - side];
      if (side ? +slider.value < +other.value : +slider.value > +other.value) other.value = slider.value;
      moved();
      filter();
    }));
    box.append(name, canvas, ...sliders);
    requestAnimationFrame(moved);
    moved();
    return box;
  }));
}

function bounds(column) {
  const [low, high] = ends(column, state.map.source.recipe.length);
  return (state.ranges.get(column) ?? [0, 1]).map((share) => low + (high - low) * share);
}

function bars(canvas, column) {
  const count = state.map.source.recipe.length;
  const [low, high] = ends(column, count);
  const tall = new Float64Array(40);
  for (let i = 0; i < count; i++) {
    const value = transform(column, column.at(i));
    if (Number.isFinite(value)) tall[Math.max(0, Math.min(39, Math.floor(40 * (value - low) / (high - low || 1))))]++;
  }
  canvas.width = (canvas.clientWidth || 320) * devicePixelRatio;
  canvas.height = 44 * devicePixelRatio;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [from, to] = (state.ranges.get(column) ?? [0, 1]).map((share) => share * 40);
  const most = Math.max(...tall, 1);
  tall.forEach((bar, i) => {
    context.fillStyle = style.getPropertyValue(i + 1 > from && i < to ? "--soft" : "--line");
    const height = bar ? Math.max(1, canvas.height * bar / most) : 0;
    context.fillRect(canvas.width * i / 40, canvas.height - height, canvas.width / 40 - devicePixelRatio, height);
  });
}

// What passes the sliders, the legend, the search and the lasso. Networks that are drawn in always do.
function filter() {
  const { map } = state;
  const { source } = map;
  const ranges = [...state.ranges.keys()].filter((column) => source.columns.includes(column)).map((column) => [column, ...bounds(column)]);
  const hidden = [...state.hidden].filter(([column, codes]) => codes.size && source.columns.includes(column));
  const wanted = element("search").value.trim().toLowerCase();
  const run = source.columns.find((column) => column.name === "run");
  const passes = (i) =>
    i >= source.recipe.length ||
    (ranges.every(([column, low, high]) => { const value = Math.fround(transform(column, column.at(i))); return value >= Math.fround(low) && value <= Math.fround(high); }) &&
      hidden.every(([column, codes]) => !codes.has(column.at(i))) &&
      (!wanted || source.ids[i].startsWith(wanted) || run?.text(i).toLowerCase().includes(wanted) || source.recipes[source.recipe[i]].toLowerCase().includes(wanted)));
  const kept = [];
  for (let i = 0; i < map.x.length; i++) if (passes(i)) kept.push(i);
  const whole = kept.length === map.x.length;
  state.kept = whole ? null : new Set(kept);
  if (whole) scatterplot.unfilter({ preventEvent: true });
  else scatterplot.filter(kept, { preventEvent: true });
  state.drawn = kept.length - kept.filter((i) => i >= source.recipe.length).length;
  element("count").textContent =
    `${state.drawn.toLocaleString("en")} of ${source.recipe.length.toLocaleString("en")} networks drawn`;
  const gone = state.chosen >= 0 && !visible(state.chosen);
  choose(gone ? -1 : state.chosen);
  if (gone) scatterplot.deselect({ preventEvent: true });
  table();
}

const visible = (i) => !state.kept || state.kept.has(i);

// The networks of the lasso, of the search or of the filters, the best first.
function table() {
  const { source } = state.map;
  const asked = state.lassoed ?? (state.kept ? [...state.kept] : []);
  const rows = asked.filter((i) => visible(i) && i < source.recipe.length);
  const sign = source.lower_is_better ? 1 : -1;
  rows.sort((a, b) => sign * (source.target.at(a) - source.target.at(b)) || a - b);
  element("selected").textContent = rows.length
    ? `Selection: ${rows.length.toLocaleString("en")}${rows.length > 200 ? ", the first 200" : ""}`
    : "Selection";
  const named = (name) => source.columns.find((column) => column.name === name);
  const columns = [named("run"), named("epoch"), source.target].filter(Boolean);
  const made = document.createElement("tbody");
  for (const i of rows.slice(0, 200)) {
    const row = made.insertRow();
    const button = text("button", source.ids[i]);
    button.type = "button";
    button.addEventListener("click", () => choose(i));
    row.insertCell().append(button);
    for (const column of columns) row.insertCell().textContent = column.text(i);
  }
  const head = document.createElement("thead");
  if (rows.length)
    head.append(...[["id", ...columns.map((column) => words(column.name))]].map((names) => {
      const row = document.createElement("tr");
      row.append(...names.map((name) => { const cell = text("th", name); cell.scope = "col"; return cell; }));
      return row;
    }));
  element("table").replaceChildren(...(rows.length ? [head, made] : [caption("Draw a lasso, search or filter to list networks here.")]));
}

const caption = (words) => text("caption", words, "soft");

function text(tag, content, name = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (name) made.className = name;
  return made;
}

function describe(i) {
  const { source } = state.map;
  const named = (name) => source.columns.find((column) => column.name === name);
  const made = document.createElement("div");
  if (i >= source.recipe.length) {
    const star = state.map.stars[i - source.recipe.length];
    made.append(text("b", `★ ${star.name}`), text("div", star.text, "soft"));
    return made;
  }
  made.append(text("b", `${words(source.target.name)} ${source.target.text(i)}`), text("span", ` ${source.ids[i]}`, "soft"));
  const run = [named("run")?.text(i), named("epoch") && `epoch ${named("epoch").text(i)}`, named("split")?.text(i)];
  made.append(text("div", run.filter(Boolean).join(" · "), "soft"));
  made.append(text("div", source.recipes[source.recipe[i]]));
  return made;
}

scatterplot.subscribe("pointOver", (i) => {
  state.hovered = i;
  const tip = element("tip");
  tip.replaceChildren(describe(i));
  const [x, y] = scatterplot.getScreenPosition(i);
  tip.style.display = "block";
  tip.style.left = `${Math.max(4, Math.min(x + 14, picture.clientWidth - tip.offsetWidth - 6))}px`;
  tip.style.top = `${y + 14 + tip.offsetHeight > picture.clientHeight ? y - tip.offsetHeight - 10 : y + 14}px`;
});
scatterplot.subscribe("pointOut", () => {
  state.hovered = -1;
  element("tip").style.display = "none";
});
scatterplot.subscribe("select", ({ points }) => {
  if (points.length === 1) return choose(points[0]);
  state.lassoed = [...points];
  choose(-1);
  table();
});
scatterplot.subscribe("deselect", () => {
  state.lassoed = null;
  choose(-1);
  table();
});
scatterplot.subscribe("drawing", lines);

const neighbours = (i) => {
  const k = state.map.near.length / state.map.x.length;
  const all = [...state.map.near.subarray(i * k, (i + 1) * k)].map((other, rank) => [other, state.map.far[i * k + rank]]);
  return all.filter(([other]) => visible(other));
};

function choose(i) {
  state.chosen = i;
  const side = element("side");
  if (i < 0) {
    side.replaceChildren(
      text("h2", "A map of networks"),
      text("p", data.help),
      ...state.map.notes.map((note) => text("p", note)),
    );
  } else {
    const list = document.createElement("ol");
    for (const [other, distance] of neighbours(i)) {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.append(describe(other), text("div", `distance ${distance.toFixed(4)}`, "soft"));
      button.addEventListener("click", () => choose(other));
      item.append(button);
      list.append(item);
    }
    side.replaceChildren(text("h2", "This network"), describe(i), text("p", ""), text("h2", "Its nearest neighbours"), list);
    scatterplot.select([i, ...neighbours(i).map(([other]) => other)], { preventEvent: true });
  }
  lines();
}

// Lines from the chosen network to its neighbours, on a canvas of their own over the points.
function lines() {
  const canvas = element("lines");
  const ratio = devicePixelRatio;
  const [width, height] = [picture.clientWidth * ratio, picture.clientHeight * ratio];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  if (!state.painted) return; // the plot has no positions yet
  (state.map.stars ?? []).forEach((star, number) => {
    const at = scatterplot.getScreenPosition(state.map.source.recipe.length + number);
    if (!at) return;
    starred(context, at[0] * ratio, at[1] * ratio, 11 * ratio);
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    const wide = context.measureText(star.name).width;
    const left = at[0] * ratio + 14 * ratio + wide > width ? at[0] * ratio - 14 * ratio - wide : at[0] * ratio + 14 * ratio;
    context.fillText(star.name, left, at[1] * ratio + 4 * ratio);
  });
  if (state.chosen < 0) return;
  const from = scatterplot.getScreenPosition(state.chosen);
  if (!from) return;
  context.strokeStyle = data.mark;
  context.lineWidth = 1.5 * ratio;
  context.beginPath();
  for (const [other] of neighbours(state.chosen)) {
    const to = scatterplot.getScreenPosition(other);
    context.moveTo(from[0] * ratio, from[1] * ratio);
    context.lineTo(to[0] * ratio, to[1] * ratio);
  }
  context.stroke();
  context.beginPath();
  context.arc(from[0] * ratio, from[1] * ratio, 7 * ratio, 0, 2 * Math.PI);
  context.stroke();
}

function starred(context, x, y, radius) {
  context.beginPath();
  for (let corner = 0; corner < 10; corner++) {
    const angle = Math.PI * (corner / 5 - 0.5);
    const away = corner % 2 ? radius * 0.45 : radius;
    context.lineTo(x + away * Math.cos(angle), y + away * Math.sin(angle));
  }
  context.closePath();
  context.fillStyle = data.mark;
  context.strokeStyle = data.ground;
  context.lineWidth = radius / 6;
  context.fill();
  context.stroke();
}

function fill(select, names) {
  select.replaceChildren(...names.map((name, i) => { const made = text("option", name); made.value = i; return made; }));
}

function openMap(number) {
  const previous = state.colour?.name;
  state.map = data.maps[number];
  state.painted = false;
  const columns = state.map.source.columns.filter((column) => column.name !== "run");
  fill(element("colour"), columns.map((column) => words(column.name)));
  state.colour = columns.find((column) => column.name === previous) ?? state.map.source.target;
  element("colour").value = columns.indexOf(state.colour);
  element("colour").onchange = (event) => { state.colour = columns[event.target.value]; filters(); return drawMap(); };
  scatterplot.deselect({ preventEvent: true });
  state.lassoed = state.kept = null;
  choose(-1);
  filters();
  const drawn = drawMap();
  return state.map.stars?.length ? drawn.then(() => choose(state.map.source.recipe.length)) : drawn;
}

fill(element("map"), data.maps.map((map) => map.name));
element("map").addEventListener("change", (event) => openMap(event.target.value));
element("search").addEventListener("input", filter);
element("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") element("table").querySelector("button")?.focus();
});
element("lasso").addEventListener("click", () => {
  const on = element("lasso").getAttribute("aria-pressed") !== "true";
  element("lasso").setAttribute("aria-pressed", String(on));
  scatterplot.set({ mouseMode: on ? "lasso" : "panZoom" });
});

// By keyboard: to the nearest network in a direction, nearer and further, and away from it all.
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
element("points").addEventListener("keydown", (event) => {
  const way = DIRECTIONS[event.key];
  if (way) {
    event.preventDefault();
    const from = state.chosen < 0 ? [picture.clientWidth / 2, picture.clientHeight / 2] : scatterplot.getScreenPosition(state.chosen);
    let [best, nearest] = [-1, Infinity];
    for (let i = 0; i < state.map.x.length; i++) {
      if (i === state.chosen || !visible(i)) continue;
      const to = scatterplot.getScreenPosition(i);
      const along = (to[0] - from[0]) * way[0] + (to[1] - from[1]) * way[1];
      const aside = Math.abs((to[0] - from[0]) * way[1]) + Math.abs((to[1] - from[1]) * way[0]);
      if (along > 0.5 && along + 2 * aside < nearest) [best, nearest] = [i, along + 2 * aside];
    }
    if (best >= 0) choose(best);
  } else if (event.key === "+" || event.key === "=" || event.key === "-") {
    const at = state.chosen < 0 ? [0, 0] : [state.map.x[state.chosen], state.map.y[state.chosen]];
    state.away = Math.min(1, Math.max(0.02, (state.away ?? 1) * (event.key === "-" ? 1.5 : 1 / 1.5)));
    if (state.away === 1) scatterplot.reset();
    else scatterplot.zoomToLocation(at, state.away);
  } else if (event.key === "Escape") {
    scatterplot.deselect();
  }
});
element("reset").addEventListener("click", () => { state.away = 1; scatterplot.reset(); });
let resized = 0;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { filters(); drawMap(); }, 150);
});

// For tests and measurements: the plot, what it shows, and when it is ready.
globalThis.weightsearchMap = { scatterplot, state, ready: openMap(0) };
