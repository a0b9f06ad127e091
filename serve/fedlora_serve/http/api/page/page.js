// What the page shows, kept as the service is: its models, its adapters, and what this visitor's keys are good for.

import { showAdapters, startAdapters } from "/page/adapters.js";
import { offerModels, startAnswers } from "/page/answers.js";
import { ask, storeKey, storedKey } from "/page/api.js";

const REFRESH_MS = 5000;
const find = (id) => document.getElementById(id);

let service = null;

async function refresh() {
  try {
    const [models, adapters] = await Promise.all(
      ["/v1/models", "/v1/adapters"].map(async (path) => (await (await ask(path)).json()).data),
    );
    const base = models.find((model) => !model.parent);
    find("base").textContent = base?.id ?? "";
    find("page-error").textContent = "";
    offerModels(models.map((model) => model.id));
    showAdapters(adapters);
  } catch (error) {
    if (error.status === 401) {
      find("keys").open ||= !storedKey("api");
      showAdapters(null);
    }
    const isKeyless = error.status === 401 && !storedKey("api");
    find("page-error").textContent = isKeyless ? "This service needs a key. Enter it under Keys." : error.message;
  }
}

function showAdmin() {
  const isAdmin = service.admin_is_set && storedKey("admin") !== "";
  find("load-form").hidden = !isAdmin || !service.has_folder;
  find("admin-hint").hidden = isAdmin && service.has_folder;
  find("admin-hint").textContent = !service.admin_is_set
    ? "This service was started without an admin key: its adapters stay as they are."
    : isAdmin
      ? "This service was started without an adapter folder: nothing is loaded here."
      : "Enter the admin key, under Keys, to load, unload and pin adapters.";
}

function showMode() {
  const isChat = find("mode").value === "chat";
  find("prompt").placeholder = isChat ? "What should each of them answer?" : "A text that each of them goes on from";
}

function useKeys(event) {
  event.preventDefault();
  try {
    storeKey("api", find("api-key").value.trim());
    storeKey("admin", find("admin-key").value.trim());
  } catch (error) {
    find("key-error").textContent = error.message;
    return;
  }
  find("key-error").textContent = find("admin-error").textContent = "";
  find("keys").open = false;
  find("keys").querySelector("summary").focus();
  showAdmin();
  refresh();
}

async function start() {
  startAnswers();
  startAdapters(refresh);
  find("key-form").addEventListener("submit", useKeys);
  try {
    service = await (await ask("/page/service.json")).json();
  } catch (error) {
    find("page-error").textContent = error.message;
    return;
  }
  find("api-key").value = storedKey("api");
  find("admin-key").value = storedKey("admin");
  find("api-key-field").hidden = !service.keys_required;
  find("admin-key-field").hidden = !service.admin_is_set;
  find("keys").hidden = !service.keys_required && !service.admin_is_set;
  find("compare").hidden = !service.generates;
  find("mode-field").hidden = !service.chats;
  find("mode").value = service.chats ? "chat" : "complete";
  find("mode").addEventListener("change", showMode);
  showMode();
  showAdmin();
  await refresh();
  setInterval(() => document.visibilityState === "visible" && refresh(), REFRESH_MS);
}

start();
