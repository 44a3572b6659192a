"use strict";
// One stream of events for all tabs: a browser allows six connections to a server, and each tab would take one.
// As a shared worker this script holds the stream and hands everything on; in a page it defines `follow`.
const RETRY_MS = 4000;

function openStream(tell) {
  const source = new EventSource("/events");
  for (const kind of ["message", "status", "reset"]) {
    source.addEventListener(kind, (event) => tell(kind, JSON.parse(event.data)));
  }
  source.addEventListener("open", () => tell("open", {}));
  source.addEventListener("error", () => {
    tell("lost", {});
    // A refusal ends the stream for good; a broken connection is taken up again by the browser itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => openStream(tell), RETRY_MS);
  });
}

if ("SharedWorkerGlobalScope" in self) {
  const ports = new Set();
  let kept = [];
  const last = {}; // the latest status, and whether the stream is open
  const tell = (kind, content) => {
    if (kind === "reset") kept = [];
    if (kind === "message") kept.push(content);
    else last[kind === "status" ? "status" : "connection"] = [kind, content, Date.now()];
    for (const port of ports) port.postMessage([[kind, content, Date.now()]]);
  };
  self.addEventListener("connect", (event) => {
    const port = event.ports[0];
    ports.add(port);
    port.onmessage = () => ports.delete(port); // the page says that it goes
    const past = [["reset", {}, Date.now()], ...kept.map((m) => ["message", m, Date.now()])];
    port.postMessage([...past, ...["status", "connection"].map((k) => last[k]).filter(Boolean)]);
    if (!last.begun) {
      last.begun = true;
      openStream(tell);
    }
  });
} else {
  window.follow = (on) => {
    if (!("SharedWorker" in window)) {
      openStream((kind, content) => on(kind, content, Date.now()));
      return;
    }
    const worker = new SharedWorker("/assets/stream.js");
    worker.port.onmessage = (event) => event.data.forEach((m) => on(...m));
    window.addEventListener("pagehide", () => worker.port.postMessage("bye"));
    // A page that comes back from the browser's cache has said goodbye before.
    window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  };
}
