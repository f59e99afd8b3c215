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
  const recent = []; // [time, events] of the last ten seconds
  let source = null;
  let held = []; // rows that wait while somebody reads further down
  let heldCount = 0;
  let last = "";

  const isReading = () => body.contains(document.activeElement) || table.getBoundingClientRect().top < -200;

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
    if (most > 20 && isReading()) {
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
  }

  function open() {
    if (source || document.hidden || (onOff && !onOff.checked)) return;
    source = new EventSource(table.dataset.stream);
    source.addEventListener("batch", onBatch);
    source.addEventListener("open", () => (table.dataset.live = "on"));
  }

  function close() {
    if (source) source.close();
    source = null;
    table.dataset.live = "off";
  }

  // A page nobody looks at needs no stream: a browser has six connections for all its tabs.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  if (onOff) onOff.addEventListener("change", () => (onOff.checked ? open() : close()));
  if (more) more.addEventListener("click", () => { release(); window.scrollTo({ top: 0 }); });
  if (rate) setTimeout(() => setInterval(tell, 1000), 9000); // until then the server's own figure is better
  open();
})();
