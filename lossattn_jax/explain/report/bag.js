"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const picture = element("picture"), marker = element("marker"), opacity = element("opacity");
  const classes = element("class");
  const show = () => {
    const kind = data.kinds[Number(element("map").value)];
    const map = kind.maps[kind.by_class ? Number(classes.value) : 0];
    if (classes) classes.disabled = !kind.by_class;
    picture.src = data.prefix + map.png;
    picture.alt = map.alt;
    element("low").textContent = map.low;
    element("high").textContent = map.high;
    element("scale").src = data.prefix + data.scales[map.signed];
  };
  element("map").addEventListener("change", show);
  if (classes) classes.addEventListener("change", show);
  show();
  if (opacity) {
    const fade = () => { picture.style.opacity = String(Number(opacity.value) / 100); };
    opacity.addEventListener("input", fade);
    fade();
  }
  const buttons = Array.from(document.querySelectorAll(".spot"));
  const mark = (chosen) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
    marker.hidden = chosen === null;
    if (chosen === null) return;
    const sides = chosen.dataset.spot.split(" ");
    ["left", "top", "width", "height"].forEach((side, i) => { marker.style[side] = `${sides[i]}%`; });
  };
  for (const button of buttons) {
    button.addEventListener("click", () => mark(button.getAttribute("aria-pressed") === "true" ? null : button));
  }
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
})();
