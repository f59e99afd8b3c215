// New events as they come. The server samples them: a few frames a second with counts and the newest rows, made by the
// same template as the rows of the page, so every text in them is escaped there.
"use strict";

(() => {
  const table = document.querySelector("[data-stream]");
  if (!table) return;
  const body = table.tBodies[0];
  const most = Number(table.dataset.most);
  const onOff = document.querySelector("[data-live-switch]");
  const more = document.querySelector("[data-live-more]");
  const empty = document.querySelector(".empty");
  const rate = document.querySelector("[data-live-rate]");
  const lost = document.querySelector("[data-live-lost]");
  const recent = []; // [time, events] of the last ten seconds
  let source = null;
  let held = []; // rows that wait while somebody reads further down
  let heldCount = 0;
  let last = ""; // where the stream goes on
  let telling = 0;
  let hiddenAt = 0;

  let pointed = false;

  // Rows must not run away from under a pointer or a focus.
  const isHeld = () => pointed || body.contains(document.activeElement);
  const isReading = () => isHeld() || (most > 20 && table.getBoundingClientRect().top < -200);

  function rowsOf(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    return [...template.content.querySelectorAll("tr")];
  }

  function insert(rows) {
    for (const row of rows) row.classList.add("fresh");
    body.prepend(...rows);
    while (body.rows.length > most) body.lastElementChild.remove();
    if (empty) empty.hidden = true;
  }

  function release() {
    insert(held);
    held = [];
    heldCount = 0;
    if (more) more.hidden = true;
  }

  function show(rows, total) {
    if (isReading()) {
      held = [...rows, ...held].slice(0, most);
      heldCount += total;
      if (more) {
        more.textContent = `Show ${heldCount.toLocaleString("en")} new`;
        more.hidden = false;
      }
    } else {
      insert([...rows, ...held]);
      held = [];
      heldCount = 0;
      if (more) more.hidden = true;
    }
  }

  function tell() {
    if (!rate) return;
    const now = Date.now();
    while (recent.length && recent[0][0] < now - 10000) recent.shift();
    const perSecond = recent.reduce((sum, [, count]) => sum + count, 0) / 10;
    rate.textContent = perSecond >= 100 ? Math.round(perSecond).toLocaleString("en") : String(Math.round(perSecond * 10) / 10);
  }

  function onBatch(event) {
    last = event.lastEventId;
    const batch = JSON.parse(event.data);
    const scale = (batch.total + batch.skipped) / batch.total;
    recent.push([Date.now(), batch.total + batch.skipped]);
    document.dispatchEvent(new CustomEvent("events", { detail: { counts: batch.counts, scale } }));
    show(rowsOf(batch.rows), batch.total + batch.skipped);
    const newest = document.getElementById("last"); // the server puts a new one there every few seconds
    if (newest) newest.textContent = ", last now";
  }

  function onOpen() {
    table.dataset.live = "on";
    clearTimeout(telling);
    telling = 0;
    if (lost) lost.hidden = true;
  }

  // A stream that ends comes back within seconds; only one that stays away is worth a word. The browser gives up
  // where something else than a stream answers, as a proxy does while the service starts: then we come back.
  function onError() {
    table.dataset.live = "off";
    if (lost && !telling) telling = setTimeout(() => (lost.hidden = false), 6000);
    if (source.readyState !== EventSource.CLOSED) return;
    source = null;
    setTimeout(open, 3000);
  }

  function open() {
    if (source || document.hidden || (onOff && !onOff.checked)) return;
    const url = new URL(table.dataset.stream, location.href);
    if (last) url.searchParams.set("cursor", last);
    source = new EventSource(url);
    source.addEventListener("batch", onBatch);
    source.addEventListener("open", onOpen);
    source.addEventListener("error", onError);
  }

  function close() {
    if (source) source.close();
    source = null;
    table.dataset.live = "off";
    clearTimeout(telling);
    telling = 0;
  }

  // A page nobody looks at needs no stream: a browser has six connections for all its tabs. What a chart missed
  // meanwhile only the server knows.
  function onLook() {
    if (document.hidden) {
      hiddenAt = Date.now();
      close();
    } else if (document.getElementById("chart") && hiddenAt && Date.now() - hiddenAt > 10000) location.reload();
    else open();
  }

  const onLeave = () => setTimeout(() => held.length && !isReading() && release());
  body.addEventListener("pointerenter", (event) => (pointed = event.pointerType === "mouse"));
  body.addEventListener("pointerleave", () => { pointed = false; onLeave(); });
  body.addEventListener("focusout", onLeave);
  document.addEventListener("visibilitychange", onLook);
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => event.persisted && open());
  if (onOff) onOff.addEventListener("change", () => (onOff.checked ? open() : close()));
  if (more) more.addEventListener("click", () => { release(); window.scrollTo({ top: 0 }); });
  if (rate) setTimeout(() => setInterval(tell, 1000), 9000); // until then the server's own figure is better
  open();
})();
