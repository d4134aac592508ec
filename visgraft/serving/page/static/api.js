// What the page asks the server: JSON, and streams of server-sent events; what goes wrong comes as words.
const KEY = "visgraft.api-key";  // in sessionStorage: gone with the tab
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: value => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

// A request that failed: its status (0: no answer at all) and words for the user.
export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// what to do, where the server's own words do not say it
const HINTS = {
  401: "Give a key that this server knows.",
  408: "The connection is slow: send a smaller image, or ask again.",
  413: "Send fewer or smaller images, or begin a new conversation.",
  429: "Many are asking right now.",
  503: "Ask again in a moment.",
  504: "Ask for a shorter answer.",
};

async function request(path, { body, signal } = {}) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "The server cannot be reached. See whether `visgraft serve` still runs there, then ask again.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw failure(response.status, told.error?.message, response.headers.get("Retry-After"));
}

function failure(status, message, wait) {
  const words = message ?? `The server answered with status ${status}.`;
  const again = wait && (status === 429 || status === 503) ? `Ask again in ${wait} s.` : "";
  return new Failed(status, [sentence(words), HINTS[status], again].filter(Boolean).join(" "));
}

const sentence = text => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

export const ask = async (path, settings) => (await request(path, settings)).json();

// Give each event of a stream as it comes; an error inside of it is thrown like any other.
export async function* stream(path, { body, signal }) {
  const response = await request(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (left + value).split("\n\n");
      left = events.pop();
      for (const event of events) {
        const data = event.startsWith("data: ") ? event.slice(6) : "";
        if (!data || data === "[DONE]") continue;
        const told = JSON.parse(data);
        if (told.error) throw failure(500, told.error.message);
        yield told;
      }
    }
  } catch (error) {
    if (error instanceof Failed || error.name === "AbortError") throw error;
    throw new Failed(0, "The answer broke off: the server is gone, or the connection to it. Ask again.");
  }
}
