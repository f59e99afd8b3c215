// What every page needs of a script: the switch between light and dark, a question before what cannot be undone, and
// that what somebody opened stays open when a part of the page is made anew.
"use strict";

(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  document.querySelector("[data-theme-switch]").addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    // A cookie and not the browser's storage: the server sends the right page from the first byte on.
    document.cookie = `jethook_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
    document.dispatchEvent(new Event("themechange"));
  });
  dark.addEventListener("change", () => document.dispatchEvent(new Event("themechange")));

  const opened = new Map();
  document.addEventListener("toggle", ({ target }) => target.id && opened.set(target.id, target.open), true);
  document.addEventListener("htmx:afterSwap", () => {
    for (const details of document.querySelectorAll("details[id]")) details.open = opened.get(details.id) ?? details.open;
  });

  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !window.confirm(question)) event.preventDefault();
  });
})();
