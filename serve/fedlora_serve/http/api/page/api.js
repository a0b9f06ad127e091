// Requests to the service, with the keys that the visitor gave. What goes wrong becomes one sentence.

const STORED = { api: "fedlora-api-key", admin: "fedlora-admin-key" };

export function storedKey(kind) {
  return sessionStorage.getItem(STORED[kind]) ?? "";
}

/** Keep a key for this tab; an empty one is forgotten. Throws where it cannot be one. */
export function storeKey(kind, key) {
  if (!/^[!-~]*$/.test(key)) throw new Error("A key is printable characters without spaces.");
  if (key) sessionStorage.setItem(STORED[kind], key);
  else sessionStorage.removeItem(STORED[kind]);
}

/** The service's answer. Throws an Error with a sentence, and the answer's `status` where there was one. */
export async function ask(path, { body, kind = "api", signal } = {}) {
  const key = storedKey(kind) || (kind === "api" ? storedKey("admin") : "");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined && kind === "api" ? "GET" : "POST";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is it still running?");
  }
  if (response.ok) return response;
  throw Object.assign(new Error(await sentence(response)), { status: response.status });
}

/** Yield each object of a stream of server-sent events, until its [DONE]. Throws the error that a stream may end with. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The answer broke off: the connection ended.");
    const parts = (text + value).split(/\r?\n\r?\n/);
    text = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data:")) continue; // a comment: the service lives, and the answer has to wait
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The service answered ${response.status} ${response.statusText}.`;
  }
}
