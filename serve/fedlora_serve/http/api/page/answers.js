// One prompt, and what up to three models answer, side by side as it comes.

import { ask, events } from "/page/api.js";

const PLACES = 3;
const find = (id) => document.getElementById(id);

const answers = [];
let stopping = null;

/** Make the places for answers, and wire the form. */
export function startAnswers() {
  for (let place = 1; place <= PLACES; place += 1) {
    const card = find("answer-template").content.firstElementChild.cloneNode(true);
    const [label, select, text, error, figures] = ["label span", "select", ".text", ".error", ".figures"].map((at) =>
      card.querySelector(at),
    );
    label.textContent = `Model ${place}`;
    text.setAttribute("aria-label", `Answer ${place}`);
    select.addEventListener("change", () => card.classList.toggle("is-off", !select.value));
    answers.push({ card, select, text, error, figures });
    find("answers").append(card);
  }
  find("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("prompt-form").requestSubmit();
  });
  find("stop").addEventListener("click", () => stopping?.abort());
}

/** Offer these models, the base first; a choice that is still there stays. */
export function offerModels(models) {
  answers.forEach(({ card, select }, place) => {
    const offered = [...select.options].map((option) => option.value);
    const wanted = ["", ...models];
    if (offered.join("\n") === wanted.join("\n") && offered.length) return;
    const isNew = !offered.length || (!select.value && offered.length === 2 && place);
    const chosen = isNew ? (models[place] ?? "") : select.value;
    select.replaceChildren(...wanted.map((model) => new Option(model || "None", model)));
    select.value = models.includes(chosen) ? chosen : "";
    card.classList.toggle("is-off", !select.value);
  });
}

async function generate() {
  if (stopping) return;
  const chosen = answers.filter(({ select }) => select.value);
  answers.forEach(clear);
  if (!chosen.length) {
    answers[0].error.textContent = "Choose a model first.";
    return;
  }
  stopping = new AbortController();
  setBusy(true);
  await Promise.all(chosen.map((answer) => stream(answer, stopping.signal)));
  stopping = null;
  setBusy(false);
}

async function stream(answer, signal) {
  const { select, text, error, figures } = answer;
  const began = performance.now();
  let first = 0;
  let usage = null;
  let reason = "";
  text.setAttribute("aria-busy", "true");
  try {
    const { path, body } = question(select.value);
    const response = await ask(path, { body, signal });
    for await (const event of events(response)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      const piece = choice?.text ?? choice?.delta?.content;
      reason = choice?.finish_reason ?? reason;
      if (!piece) continue;
      first ||= performance.now();
      const isAtEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 24;
      text.append(piece);
      if (isAtEnd) text.scrollTop = text.scrollHeight;
    }
  } catch (problem) {
    if (problem.name === "AbortError") reason = "stopped";
    else error.textContent = problem.message;
  }
  text.setAttribute("aria-busy", "false");
  figures.textContent = summary(usage, first - began, performance.now() - first, reason, first > 0);
}

function question(model) {
  const prompt = find("prompt").value;
  const settings = {
    model,
    max_tokens: find("max-tokens").valueAsNumber,
    temperature: find("temperature").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  return find("mode").value === "chat"
    ? { path: "/v1/chat/completions", body: { ...settings, messages: [{ role: "user", content: prompt }] } }
    : { path: "/v1/completions", body: { ...settings, prompt } };
}

function summary(usage, waitedMs, tookMs, reason, hasText) {
  const parts = [];
  if (usage) parts.push(`${usage.completion_tokens} token${usage.completion_tokens === 1 ? "" : "s"}`);
  if (usage && usage.completion_tokens > 1 && hasText) {
    parts.push(`${((1000 * (usage.completion_tokens - 1)) / Math.max(tookMs, 1)).toFixed(1)} a second`);
  }
  if (hasText) parts.push(`first after ${(waitedMs / 1000).toFixed(2)} s`);
  if (reason === "length") parts.push("cut at the limit");
  if (reason === "stopped" || reason === "cancelled") parts.push("stopped");
  return parts.join(" · ");
}

function clear({ text, error, figures }) {
  text.replaceChildren();
  error.textContent = figures.textContent = "";
}

function setBusy(isBusy) {
  find("generate").disabled = isBusy;
  find("stop").disabled = !isBusy;
}
