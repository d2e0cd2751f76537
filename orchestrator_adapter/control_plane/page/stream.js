// The documents of /events. It connects again by itself, and notices a server that is silent.

const RECONNECT_MS = 1_000;
const SILENT_MS = 4_000; // documents come twice a second

/**
 * Calls onDocument(document, receivedAtMs), onEnd({outcome, text}), and onConnection({connected, sinceMs}) whenever it
 * changes; sinceMs is when the last document came.
 */
export function listen({onDocument, onEnd, onConnection}) {
  let source = null;
  let last = Date.now();
  let connected = null;
  let ended = false;
  let retry = 0;

  function report(now) {
    if (now === connected || ended) return;
    connected = now;
    onConnection({connected: now, sinceMs: last});
  }

  function connect() {
    source?.close();
    const mine = source = new EventSource("events");
    mine.addEventListener("graph", (event) => {
      if (mine !== source) return;
      ended = false;
      last = Date.now();
      report(true);
      onDocument(JSON.parse(event.data), last);
    });
    mine.addEventListener("end", (event) => {
      if (mine !== source) return;
      ended = true;
      onEnd(JSON.parse(event.data));
    });
    mine.addEventListener("error", () => {
      if (mine !== source) return;
      mine.close();
      report(false);
      clearTimeout(retry);
      retry = setTimeout(connect, RECONNECT_MS);
    });
  }

  setInterval(() => {
    if (Date.now() - last > SILENT_MS) report(false);
  }, 1_000);
  connect();
}
