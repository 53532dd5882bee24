"use strict";
// The map: what `interactive.py` wrote into #data, drawn with regl-scatterplot (WebGL). No network, no other library.

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const GREY = data.colours.length; // the colour of unknown values, after the 256 of the scale

function decode(text, Type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Type(bytes.buffer);
}

// Columns come by network, or by recipe where all networks of a recipe share them; `value` sees no difference.
for (const source of data.sources) {
  source.recipe = decode(source.recipe, Int32Array);
  for (const column of source.columns) {
    column.data = decode(column.data, column.labels ? Int32Array : Float32Array);
    column.at = column.by === "recipe" ? (i) => column.data[source.recipe[i]] : (i) => column.data[i];
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

function show(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 0.001 && size < 10000 ? value.toFixed(3) : value.toExponential(1);
}

const state = { map: null, colour: null, chosen: -1, hovered: -1, drawn: 0 };
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
  made.resize(); // to the window: the library does this for a canvas of its own only
  addEventListener("resize", () => made.resize());
  return made;
}

const scatterplot = reglScatterplot.createScatterplot({
  renderer: renderer(),
  canvas: element("points"),
  width: "auto",
  height: "auto",
  actionKeyMap: {}, // no lasso and no turning
  backgroundColor: data.ground,
  pointColor: [...data.colours, data.grey],
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
    const step = column.labels.length > 1 ? 255 / (column.labels.length - 1) : 0;
    for (let i = 0; i < count; i++) {
      const code = column.at(i);
      positions[i] = code < 0 ? GREY : Math.round(code * step);
    }
    return positions;
  }
  const [low, high] = ends(column, count);
  for (let i = 0; i < count; i++) {
    const value = transform(column, column.at(i));
    positions[i] = Number.isNaN(value)
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

async function drawMap() {
  const map = state.map;
  const size = Math.min(8, Math.max(1.6, 420 / Math.sqrt(map.x.length)));
  scatterplot.set({ pointSize: size, opacity: map.x.length > 20000 ? 0.75 : 0.95 });
  const values = scale(map.source, state.colour);
  await scatterplot.draw(
    { x: map.x, y: map.y, valueA: values },
    { zDataType: "categorical", spatialIndex: map.spatialIndex },
  );
  map.spatialIndex = scatterplot.get("spatialIndex");
  legend();
  filter();
}

function legend() {
  const column = state.colour;
  const box = element("legend");
  box.replaceChildren(text("div", words(column.name)));
  if (column.labels) {
    const shown = column.labels.slice(0, 14);
    const step = column.labels.length > 1 ? 255 / (column.labels.length - 1) : 0;
    shown.forEach((label, code) => {
      const item = text("span", label, "class");
      const dot = document.createElement("i");
      dot.style.background = data.colours[Math.round(code * step)];
      item.prepend(dot);
      box.append(item);
    });
    if (column.labels.length > shown.length) box.append(text("span", `and ${column.labels.length - shown.length} more`));
    return;
  }
  const bar = text("div", "", "bar");
  bar.style.background = `linear-gradient(to right, ${data.colours.filter((_, i) => i % 15 === 0).join(",")})`;
  const marks = text("div", "", "ends");
  for (const end of ends(column, state.map.x.length)) marks.append(text("span", show(column.log ? 10 ** end : end)));
  box.append(bar, marks);
}

// The accuracies (or other values) that the two sliders stand for.
function bounds() {
  const [low, high] = ends(state.map.source.target, state.map.x.length);
  const at = (slider) => low + (high - low) * (element(slider).value / 1000);
  return [at("low"), at("high")];
}

function filter() {
  const { map } = state;
  const target = map.source.target;
  const [low, high] = bounds();
  const whole = element("low").value === "0" && element("high").value === "1000";
  element("between").textContent = `${show(low)} to ${show(high)}`;
  if (whole) {
    scatterplot.unfilter({ preventEvent: true });
    state.drawn = map.x.length;
  } else {
    const kept = [];
    for (let i = 0; i < map.x.length; i++) {
      const value = target.at(i);
      if (value >= low && value <= high) kept.push(i);
    }
    scatterplot.filter(kept, { preventEvent: true });
    state.drawn = kept.length;
  }
  element("count").textContent =
    `${state.drawn.toLocaleString("en")} of ${map.x.length.toLocaleString("en")} networks drawn`;
  if (state.chosen >= 0) choose(state.chosen);
}

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
  made.append(text("b", `${words(source.target.name)} ${source.target.text(i)}`));
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
scatterplot.subscribe("select", ({ points }) => choose(points[0]));
scatterplot.subscribe("deselect", () => choose(-1));
scatterplot.subscribe("drawing", lines);

const neighbours = (i) => {
  const k = state.map.near.length / state.map.x.length;
  return [...state.map.near.subarray(i * k, (i + 1) * k)].map((other, rank) => [other, state.map.far[i * k + rank]]);
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
      item.append(describe(other), text("div", `distance ${distance.toFixed(4)}`, "soft"));
      item.addEventListener("click", () => choose(other));
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

function fill(select, names) {
  select.replaceChildren(...names.map((name, i) => { const made = text("option", name); made.value = i; return made; }));
}

function openMap(number) {
  const previous = state.colour?.name;
  state.map = data.maps[number];
  const columns = state.map.source.columns.filter((column) => column.name !== "run");
  fill(element("colour"), columns.map((column) => words(column.name)));
  state.colour = columns.find((column) => column.name === previous) ?? state.map.source.target;
  element("colour").value = columns.indexOf(state.colour);
  element("colour").onchange = (event) => { state.colour = columns[event.target.value]; return drawMap(); };
  element("filtered").textContent = words(state.map.source.target.name);
  scatterplot.deselect({ preventEvent: true });
  choose(-1);
  return drawMap();
}

fill(element("map"), data.maps.map((map) => map.name));
element("map").addEventListener("change", (event) => openMap(event.target.value));
for (const [slider, other, wrong] of [["low", "high", (a, b) => a > b], ["high", "low", (a, b) => a < b]])
  element(slider).addEventListener("input", () => {
    if (wrong(+element(slider).value, +element(other).value)) element(other).value = element(slider).value;
    filter();
  });
element("reset").addEventListener("click", () => scatterplot.reset());
addEventListener("resize", lines);

// For tests and measurements: the plot, what it shows, and when it is ready.
globalThis.weightsearchMap = { scatterplot, state, ready: openMap(0) };
