// Copy buttons, the sample browser, and open details when printing. Without scripts all samples stand one below another.
"use strict";

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch { // no clipboard without permission: select the text, so that the reader's own copy key works
      getSelection().selectAllChildren(button.querySelector("code"));
      button.dataset.state = "selected";
      return;
    }
    button.dataset.state = "copied";
    setTimeout(() => delete button.dataset.state, 1500);
  });
}

for (const browser of document.querySelectorAll(".browser")) {
  const samples = [...browser.querySelectorAll(".sample")];
  const list = browser.querySelector("select");
  const counter = browser.querySelector("output");
  let current = 0;
  const show = (index) => {
    current = Math.max(0, Math.min(samples.length - 1, index));
    samples.forEach((sample, i) => { sample.hidden = i !== current; });
    list.selectedIndex = current;
    counter.textContent = `${current + 1} of ${samples.length}`;
    for (const button of browser.querySelectorAll("[data-step]")) {
      const next = current + Number(button.dataset.step);
      button.setAttribute("aria-disabled", String(next < 0 || next >= samples.length));
    }
  };
  for (const button of browser.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => show(current + Number(button.dataset.step)));
  }
  list.addEventListener("change", () => show(list.selectedIndex));
  browser.addEventListener("keydown", (event) => {
    if (event.target === list || event.target.closest(".scroll") || event.altKey || event.ctrlKey || event.metaKey) return;
    const target = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: samples.length - 1 }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    show(target);
  });
  browser.querySelector(".bar").hidden = false;
  show(0);
}

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));
