"use strict";
// All content is set as text or as attributes of elements created here, never as HTML: file names, class names and
// messages are untrusted.

const get = (id) => document.getElementById(id);
const form = get("form"), files = get("files"), drop = get("drop"), status = get("status");
const run = get("run"), cancel = get("cancel"), key = get("key");
const SVG = "http://www.w3.org/2000/svg";
let chosen = [];        // files
let model = null;       // response of /v1/model
let answer = null;      // response for the last field
let request = null;     // current request
let pictures = [];      // object URLs of crops, to be revoked

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function say(text, kind = "") {
  status.textContent = text;
  status.className = kind;
}

function percent(value) { return value === null || value === undefined ? "–" : value.toFixed(1); }
function plural(number, word) { return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`; }
function kind() { return form.elements.kind.value; }

function headers() {
  return key.value.trim() ? { "X-API-Key": key.value.trim() } : {};
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("No response from the server; check that it is running.");
  }
  if (response.ok) return response.json();
  let said;
  try { said = (await response.json()).error; } catch { said = response.statusText || "unknown error"; }
  if (response.status === 401) {
    get("key-label").hidden = false;
    key.focus();
    throw new Error(key.value ? "The server rejected this API key." : "This server requires an API key.");
  }
  throw new Error(said);
}

async function introduce() {
  try {
    model = await ask("/v1/model");
    const size = model.pixel_size_um ? `, ${model.pixel_size_um} µm per pixel` : "";
    get("model").textContent =
      `${model.name}: ${plural(model.classes.length, "class").replace("classs", "classes")}${size}, ${model.runtime} on ${model.device}`;
    say("");
    adapt();
  } catch (error) {
    get("model").textContent = "";
    say(error.message, "error");
  }
}

function adapt() {
  const field = kind() === "field";
  files.multiple = !field;
  if (field) chosen = chosen.slice(0, 1);
  for (const part of document.querySelectorAll(".for-field")) part.hidden = !field;
  const side = model ? `${model.patch_size} × ${model.patch_size} pixels` : "the model's patch size";
  get("drop-hint").textContent = field
    ? "TIFF, OME-TIFF, PNG, JPEG or BMP in colour"
    : `TIFF, PNG, JPEG or BMP in colour, ${side} each`;
  const names = chosen.map((file) => file.name);
  get("drop-text").textContent =
    names.length === 0 ? (field ? "Drop an image here, or click to choose one" : "Drop images here, or click to choose them")
    : names.length <= 3 ? names.join(", ") : `${names[0]} and ${names.length - 1} more`;
  run.disabled = chosen.length === 0 || request !== null;
}

function choose(list) {
  chosen = [...list];
  adapt();
}

async function classify() {
  const lowConfidence = get("min-probability").value;
  const body = new FormData();
  const query = new URLSearchParams({ min_probability: lowConfidence });
  const whole = kind() === "field";
  const sent = [...chosen];
  for (const file of sent) body.append("image", file, file.name);
  if (whole) {
    query.set("picture", "true");
    if (get("pixel-size").value) query.set("pixel_size_um", get("pixel-size").value);
  }
  request = new AbortController();
  run.disabled = true;
  cancel.hidden = false;
  get("field").hidden = get("crops").hidden = true;
  say(whole ? `Detecting cells in ${sent[0].name} …` : `Classifying ${plural(sent.length, "image")} …`);
  try {
    const found = await ask(`${whole ? "/v1/fields" : "/v1/cells"}?${query}`, {
      method: "POST", body, signal: request.signal,
    });
    // Announced to screen readers.
    say(whole ? `${plural(found.cells.features.length, "cell")} detected` : `${plural(found.cells.length, "image")} processed`, "heard");
    if (whole) showField(found, sent[0].name, Number(lowConfidence)); else showCrops(found, sent);
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled."); else say(error.message, "error");
  } finally {
    request = null;
    cancel.hidden = true;
    adapt();
  }
}

function showField(found, name, minProbability) {
  answer = { ...found, name };
  const picture = get("picture"), overlay = get("overlay");
  picture.width = found.picture.width;
  picture.height = found.picture.height;
  picture.src = found.picture.data;
  overlay.setAttribute("viewBox", `0 0 ${found.field.width} ${found.field.height}`);
  const cells = found.cells.features;
  overlay.replaceChildren(...cells.map((cell, index) => outline(cell, minProbability, `${index + 1} of ${cells.length}`)));
  oneStop(overlay.children);
  get("title").textContent = name;
  const size = found.field.pixel_size_um ? `${found.field.pixel_size_um} µm per pixel` : null;
  const all = found.differential.all;
  const notes = [...found.field.notes, ...found.field.reasons.map((reason) => `Failed quality control: ${reason}`)];
  notes.push(...found.warnings);
  notes.push(...all.notes, ...found.differential.notes);
  get("notes").replaceChildren(...[...new Set(notes)].map((note) => element("li", { textContent: note[0].toUpperCase() + note.slice(1) })));
  const seconds = Object.values(found.seconds).reduce((sum, part) => sum + part, 0);
  const range = (share) => share.interval ? ` (95 % interval ${share.interval.map(percent).join(" – ")})` : "";
  const ratio = all.myeloid_erythroid;
  const lines = [
    `${found.field.width} × ${found.field.height} pixels${size ? `, ${size}` : ""}`,
    `${plural(all.cells, "cell")} detected in ${seconds.toFixed(1)} s: ${all.counted} counted, ${all.low_confidence} low-confidence, ${all.counted_apart} counted separately`,
  ];
  if (all.blasts && all.blasts.percent !== null) lines.push(`Blasts ${percent(all.blasts.percent)} %${range(all.blasts)}`);
  lines.push(ratio.ratio === null ? `Myeloid : erythroid not defined: ${ratio.reason}` : `Myeloid : erythroid ${ratio.ratio}`);
  get("summary").replaceChildren(...lines.map((line) => element("li", { textContent: line })));
  table(all);
  detail(null);
  get("field").hidden = false;
}

function named(code) { return model?.classes.find((entry) => entry.code === code)?.name ?? ""; }

function colour(code) {
  const entry = model && model.classes.find((each) => each.code === code);
  return entry ? entry.colour : "#7f7f7f";
}

// A group of elements is one tab stop; the arrow keys move within it.
function oneStop(items, wanted = null) {
  const stop = wanted ?? [...items].find((item) => item.style.display !== "none");
  for (const item of items) item.setAttribute("tabindex", item === stop ? "0" : "-1");
}

function goTo(items, wanted) {
  if (!wanted) return;
  oneStop(items, wanted);
  wanted.focus();
}

function middle(shape) {
  const box = shape.getBBox();
  return [box.x + box.width / 2, box.y + box.height / 2];
}

// The nearest cell above or below; a horizontal offset counts twice.
function nearest(shape, others, down) {
  const [x, y] = middle(shape);
  let best = null, least = Infinity;
  for (const other of others) {
    const [there, at] = middle(other);
    const ahead = down ? at - y : y - at;
    const cost = ahead + 2 * Math.abs(there - x);
    if (other !== shape && ahead > 0 && cost < least) [best, least] = [other, cost];
  }
  return best;
}

function moveAmongCells(event) {
  const shapes = [...get("overlay").children], shown = shapes.filter((each) => each.style.display !== "none");
  const here = shown.indexOf(event.target);
  const next = {
    ArrowRight: () => shown[here + 1], ArrowLeft: () => shown[here - 1],
    ArrowDown: () => nearest(event.target, shown, true), ArrowUp: () => nearest(event.target, shown, false),
    Home: () => shown[0], End: () => shown[shown.length - 1],
    Enter: () => shown[here], " ": () => shown[here],
  }[event.key];
  if (!next || here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const wanted = next();
  // Escape may have closed the details of the cell that already has the focus.
  if (wanted === event.target) wanted.dispatchEvent(new Event("focus"));
  goTo(shapes, wanted);
  if (!wanted) return;
  // The details cover the lower end of the visible image.
  const hidden = wanted.getBoundingClientRect().bottom + 12 - get("cell").getBoundingClientRect().top;
  if (hidden > 0) window.scrollBy(0, hidden);
}

function outline(cell, minProbability, place) {
  const shape = document.createElementNS(SVG, "path");
  const ring = cell.geometry.coordinates[0];
  const code = cell.properties.classification ? cell.properties.classification.name : "";
  const sure = cell.properties.measurements["Probability"];
  shape.setAttribute("d", `M${ring.map((point) => point.join(" ")).join("L")}Z`);
  shape.setAttribute("stroke", colour(code));
  shape.setAttribute("fill", colour(code));
  const lowConfidence = !(sure >= minProbability);
  shape.setAttribute("role", "option");
  shape.setAttribute("aria-selected", "false");
  shape.setAttribute("aria-label", `${code} ${named(code)}, ${(100 * sure).toFixed(0)} %${lowConfidence ? ", low-confidence" : ""}, cell ${place}`);
  shape.dataset.code = code;
  shape.classList.toggle("low-confidence", lowConfidence);
  for (const kind of ["mouseenter", "focus", "click"]) shape.addEventListener(kind, () => detail(cell, shape));
  shape.addEventListener("focus", () => oneStop(shape.parentElement.children, shape));
  return shape;
}

function bars(probabilities, most = 4) {
  const made = element("div", { className: "bars" });
  for (const [code, value] of probabilities.sort((one, other) => other[1] - one[1]).slice(0, most)) {
    made.append(
      element("span", {}, dot(code), code),
      element("meter", { min: 0, max: 1, value, title: `${(100 * value).toFixed(1)} %` }),
      element("span", { textContent: `${(100 * value).toFixed(1)} %` }),
    );
  }
  return made;
}

function detail(cell, shape = null) {
  for (const each of document.querySelectorAll("#overlay .chosen")) {
    each.classList.remove("chosen");
    each.setAttribute("aria-selected", "false");
  }
  const place = get("cell");
  if (!cell) {
    place.replaceChildren("Point at a cell to see its probabilities. Keyboard: arrow keys move between cells, Escape closes the details.");
    return;
  }
  shape.classList.add("chosen");
  shape.setAttribute("aria-selected", "true");
  const measured = Object.entries(cell.properties.measurements);
  const probabilities = measured.filter(([name]) => name.startsWith("p_")).map(([name, value]) => [name.slice(2), value]);
  const lowConfidence = shape.classList.contains("low-confidence") ? " (low-confidence)" : "";
  place.replaceChildren(element("b", { textContent: `${cell.properties.name}${lowConfidence}` }), bars(probabilities));
}

function dot(code) {
  const made = element("span", { className: "dot" });
  made.style.background = colour(code);
  return made;
}

function table(all) {
  const shares = new Map(all.classes.map((share) => [share.code, share]));
  const rows = model.classes.map((entry) => ({ entry, share: shares.get(entry.code) }));
  rows.sort((one, other) => other.share.count + other.share.low_confidence - one.share.count - one.share.low_confidence);
  const body = get("classes").tBodies[0];
  body.replaceChildren(...rows.map(({ entry, share }) => {
    const button = element("button", { type: "button", className: "class", title: "Show only these cells" },
      dot(entry.code), element("b", { textContent: entry.code }), element("span", { className: "name", textContent: entry.name }));
    button.setAttribute("aria-pressed", "false");
    const label = element("td", { className: "left" }, button);
    const cells = element("td", { textContent: share.count });
    if (share.low_confidence) cells.append(element("span", { className: "name", textContent: `+ ${share.low_confidence} low-confidence` }));
    const interval = share.interval ? share.interval.map(percent).join(" – ") : "";
    const row = element("tr", {}, label, cells,
      element("td", { textContent: entry.counted ? percent(share.percent) : "apart" }), element("td", { textContent: interval }));
    row.dataset.code = entry.code;
    if (share.count + share.low_confidence === 0) row.classList.add("none");
    row.addEventListener("click", () => only(row));
    return row;
  }));
  oneStop(body.querySelectorAll("button"));
}

function only(row) {
  const again = row.classList.contains("only");
  for (const each of row.parentElement.children) {
    each.classList.toggle("only", each === row && !again);
    each.querySelector("button").setAttribute("aria-pressed", String(each === row && !again));
  }
  oneStop(row.parentElement.querySelectorAll("button"), row.querySelector("button"));
  for (const shape of get("overlay").children) {
    shape.style.display = again || shape.dataset.code === row.dataset.code ? "" : "none";
  }
  detail(null);
  oneStop(get("overlay").children);
}

function showCrops(found, sent) {
  for (const address of pictures) URL.revokeObjectURL(address);
  pictures = [];
  get("crop-list").replaceChildren(...found.cells.map((cell, index) => {
    const item = element("li");
    if (!/\.tiff?$/i.test(sent[index].name)) {
      const address = URL.createObjectURL(sent[index]);
      pictures.push(address);
      if (!cell.error) item.append(element("img", { src: address, alt: "" }));
    }
    item.append(element("div", { className: "small muted", textContent: cell.name }));
    if (cell.error) {
      item.append(element("div", { className: "wrong", textContent: cell.error }));
    } else {
      item.append(element("b", { textContent: `${cell.predicted} ${named(cell.predicted)}${cell.low_confidence ? " (low-confidence)" : ""}` }),
        bars(Object.entries(cell.probabilities), 3));
    }
    return item;
  }));
  get("crops").hidden = false;
}

function save(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

files.addEventListener("change", () => choose(files.files));
for (const event of ["dragenter", "dragover"]) {
  drop.addEventListener(event, (moved) => { moved.preventDefault(); drop.classList.add("over"); });
}
for (const event of ["dragleave", "drop"]) drop.addEventListener(event, () => drop.classList.remove("over"));
drop.addEventListener("drop", (dropped) => { dropped.preventDefault(); choose(dropped.dataTransfer.files); });
for (const choice of form.elements.kind) choice.addEventListener("change", adapt);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!model) await introduce();
  if (model && chosen.length) await classify();
});
get("overlay").addEventListener("keydown", moveAmongCells);
get("classes").addEventListener("keydown", (event) => {
  const buttons = [...get("classes").querySelectorAll("button")], here = buttons.indexOf(event.target);
  const next = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (here < 0 || next === undefined) return;
  event.preventDefault();
  goTo(buttons, buttons[next]);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && answer) detail(null); });
key.addEventListener("change", () => { if (!model) introduce(); });
cancel.addEventListener("click", () => request && request.abort());
get("save-geojson").addEventListener("click", () => save(JSON.stringify(answer.cells), `${answer.field.field_id}.geojson`));
get("save-differential").addEventListener("click",
  () => save(JSON.stringify(answer.differential, null, 2), `${answer.field.field_id}-differential.json`));
introduce();
