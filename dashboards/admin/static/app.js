// What every page does with a script: single keys, copying, dialogs in older browsers. Pages work
// without it.
(() => {
  "use strict";
  const STORE = "tiergate-shortcuts";
  const help = document.getElementById("help");
  const toggle = document.getElementById("shortcuts");
  const isOn = () => localStorage.getItem(STORE) !== "off";

  if (toggle) {
    toggle.checked = isOn();
    toggle.addEventListener("change", () => localStorage.setItem(STORE, toggle.checked ? "on" : "off"));
  }

  // A form that comes back is at its first fault.
  const wrong = document.querySelector('main [aria-invalid="true"]');
  if (wrong) wrong.focus();

  // On a narrow screen the bar of pages scrolls by itself: to the page that is open.
  const current = document.querySelector("nav a[aria-current]");
  const bar = current && current.closest("nav");
  if (bar && bar.scrollWidth > bar.clientWidth) {
    const [at, from] = [current.getBoundingClientRect(), bar.getBoundingClientRect()];
    bar.scrollLeft += at.left - from.left - (from.width - at.width) / 2;
  }

  // Buttons with command and commandfor, where the browser does not know them yet.
  if (!("commandForElement" in HTMLButtonElement.prototype)) {
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button[commandfor]");
      const dialog = button && document.getElementById(button.getAttribute("commandfor"));
      if (!dialog) return;
      if (button.getAttribute("command") === "show-modal") dialog.showModal();
      else dialog.close();
    });
  }

  let waits = false;
  let timer = 0;
  document.addEventListener("keydown", (event) => {
    if (!isOn() || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]")) return;
    if (document.querySelector("dialog[open]")) return;
    const key = event.key;
    if (waits) {
      waits = false;
      clearTimeout(timer);
      const links = [...document.querySelectorAll("[data-go]")];
      const link = links.find((one) => one.dataset.go === key);
      if (link) {
        event.preventDefault();
        link.click();
      }
    } else if (key === "g") {
      waits = true;
      timer = setTimeout(() => { waits = false; }, 1500);
    } else if (key === "/") {
      const field = document.querySelector("[data-search]");
      if (field) {
        event.preventDefault();
        field.focus();
        if (field.select) field.select();
      }
    } else if (key === "?" && help) {
      event.preventDefault();
      help.showModal();
    } else if (key === "p") {
      const button = document.getElementById("pause");
      if (button) button.click();
    }
  });

  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue; // not on plain http
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).value);
      button.textContent = "Copied";
    });
  }
  for (const field of document.querySelectorAll("[data-select]")) {
    field.addEventListener("focus", () => field.select());
  }
})();
