// The table of adapters, and what the holder of the admin key does with them.

import { ask, storedKey } from "/page/api.js";

const MAX_ROWS = 200;
const find = (id) => document.getElementById(id);

let adapters = null; // not known yet, or nobody's business
let changed = async () => {};

/** Wire the table and the form; `onChange` is awaited whenever the adapters have changed. */
export function startAdapters(onChange) {
  changed = onChange;
  find("filter").addEventListener("input", draw);
  find("load-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = find("load-name").value;
    const body = { lora_name: name, lora_path: find("load-path").value, load_inplace: find("load-inplace").checked };
    act(find("load"), "/v1/load_lora_adapter", body, `${name} is loaded.`);
  });
}

/** Show these adapters; null where they cannot be seen. */
export function showAdapters(list) {
  adapters = list;
  draw();
}

function draw() {
  const known = adapters ?? [];
  const wanted = find("filter").value.toLowerCase();
  const fitting = known.filter(({ name }) => name.toLowerCase().includes(wanted));
  const focused = document.activeElement?.dataset?.action;
  find("adapters").replaceChildren(...fitting.slice(0, MAX_ROWS).map(row));
  if (focused) document.querySelector(`[data-action="${CSS.escape(focused)}"]`)?.focus();
  const hidden = fitting.length - Math.min(fitting.length, MAX_ROWS);
  find("adapters-count").textContent = known.length ? `${known.length} loaded${hidden ? `, ${hidden} not shown` : ""}` : "";
  find("filter-field").hidden = known.length <= 10;
  find("no-adapters").hidden = fitting.length > 0;
  find("no-adapters").textContent = !adapters ? "Not to be seen without a key." : known.length ? "No adapter's name has that." : "No adapters are loaded.";
  document.querySelector("thead").hidden = fitting.length === 0;
}

function row(adapter) {
  const line = document.createElement("tr");
  line.append(
    cell("name", "", adapter.name),
    cell("number", "Version", adapter.version),
    cell("number", "Rank", adapter.rank),
    cell("number", "Size", size(adapter.size_bytes)),
    cell("source", "Source", adapter.source),
    cell("digest", "Digest", adapter.digest.slice(0, 12)),
    cell("number", "In use", adapter.users),
    marks(adapter),
    actions(adapter),
  );
  line.querySelector(".digest").title = adapter.digest;
  return line;
}

function cell(kind, label, content) {
  const result = document.createElement("td");
  result.className = kind;
  if (label) result.dataset.label = label;
  result.textContent = content;
  return result;
}

function marks({ resident, pinned, release }) {
  const result = cell("memory", "Memory", "");
  const mark = document.createElement("span");
  mark.className = resident ? "mark is-on" : "mark";
  mark.textContent = pinned ? "pinned" : resident ? "in memory" : "evicted";
  result.append(mark);
  if (release) result.append(signedMark(release));
  return result;
}

/** That a key vouches for the adapter: which release of what version, and whose. */
function signedMark({ name, version, signer }) {
  const mark = document.createElement("span");
  mark.className = "mark is-on";
  mark.textContent = `signed ${version}`;
  mark.title = `Release ${name} ${version}, signed by ${signer}`;
  return mark;
}

function actions({ name, pinned }) {
  const result = cell("actions", "", "");
  if (!storedKey("admin")) return result;
  const path = name.split("/").map(encodeURIComponent).join("/");
  const pin = button(pinned ? "Unpin" : "Pin", name, (pressed) =>
    act(pressed, `/v1/adapters/${path}/${pinned ? "unpin" : "pin"}`, undefined, `${name} is ${pinned ? "not pinned any more" : "pinned"}.`),
  );
  const unload = button("Unload", name, (pressed) =>
    act(pressed, "/v1/unload_lora_adapter", { lora_name: name }, `${name} is unloaded.`),
  );
  result.append(pin, unload);
  return result;
}

function button(word, name, onClick) {
  const result = document.createElement("button");
  result.type = "button";
  result.textContent = word;
  result.dataset.action = `${word} ${name}`;
  result.setAttribute("aria-label", `${word} ${name}`);
  result.addEventListener("click", () => onClick(result));
  return result;
}

async function act(pressed, path, body, done) {
  find("admin-error").textContent = find("admin-status").textContent = "";
  pressed.disabled = true;
  try {
    await ask(path, { body, kind: "admin" });
    find("admin-status").textContent = done;
  } catch (error) {
    find("admin-error").textContent = error.message;
  }
  pressed.disabled = false;
  await changed();
}

function size(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}
