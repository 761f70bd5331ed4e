"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { rows, cols, height, width, classes, kind } = data;
  const patches = rows * cols, size = height * width;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const quantised = new Uint16Array(bytes(data.fields).buffer);
  const fields = Float32Array.from(quantised, (level, i) => level * data.field_scales[Math.floor(i / size)]);
  const inferno = bytes(data.inferno), diverging = bytes(data.diverging);
  const element = (id) => document.getElementById(id);
  const container = element("cards");

  // The mean over the patches that see a pixel, by how strongly they do: receptive_field.pixel_map.
  const seen = new Float32Array(size);
  for (let p = 0; p < patches; p++) for (let i = 0; i < size; i++) seen[i] += fields[p * size + i];
  const pixelMap = (values) => {
    const map = new Float32Array(size);
    for (let p = 0; p < patches; p++) {
      if (values[p] === 0) continue;
      for (let i = 0; i < size; i++) map[i] += values[p] * fields[p * size + i];
    }
    return map.map((value, i) => (seen[i] > 0 ? value / seen[i] : 0));
  };
  const softmax = (values) => {
    const highest = Math.max(...values);
    const parts = Array.from(values, (value) => Math.exp(value - highest));
    const total = parts.reduce((a, b) => a + b, 0);
    return parts.map((part) => part / total);
  };
  const probabilities = (logits) => {
    if (kind === "margin") return Array.from(logits);
    return kind === "sigmoid" ? Array.from(logits, (z) => 1 / (1 + Math.exp(-z))) : softmax(logits);
  };
  const largest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const place = (patch) => `row ${Math.floor(patch / cols) + 1}, column ${(patch % cols) + 1}`;
  const short = (value) => (Math.abs(value) >= 0.0005 ? value.toFixed(3) : value === 0 ? "0" : value.toExponential(0));
  const hue = (k) => Math.round((k * 137.508) % 360);

  const items = data.images.map((image, number) => {
    const card = element(`image-${number}`);
    const logits = floats(image.patch_logits);
    return {
      ...image, number, card,
      attention: image.attention.map(floats),
      logits: Array.from({ length: patches }, (_, p) =>
        logits.subarray(p * classes.length, (p + 1) * classes.length)),
      picture: card.querySelector(".image img"),
      map: card.querySelector(".map img"),
      told: card.querySelector(".told"),
      built: false, patch: null,
    };
  });

  const state = () => {
    const [map, which] = element("map").value.split(":");
    return { map, which: Number(which || 0), picked: element("class").value };
  };
  const classOf = (item, picked) => {
    if (picked === "predicted") return item.predicted;
    if (picked === "label") return item.label.length ? item.label[0] : item.predicted;
    return Number(picked);
  };
  const values = (item) => {
    const { map, which, picked } = state();
    const attention = item.attention[which];
    if (map === "attention") return { values: attention, signed: false };
    const k = classOf(item, picked);
    if (map === "probability") {
      return { values: item.logits.map((z) => probabilities(z)[k]), signed: false, top: 1, k };
    }
    const part = item.logits.map((z, p) => {
      const mean = z.reduce((a, b) => a + b, 0) / z.length;
      return attention[p] * (z[k] - mean);
    });
    return { values: part, signed: true, k };
  };

  const grey = (item) => {
    if (!item.grey) {
      const canvas = new OffscreenCanvas(width, height);
      const context = canvas.getContext("2d");
      context.drawImage(item.picture, 0, 0, width, height);
      const pixels = context.getImageData(0, 0, width, height).data;
      item.grey = Float32Array.from({ length: size }, (_, i) =>
        0.299 * pixels[4 * i] + 0.587 * pixels[4 * i + 1] + 0.114 * pixels[4 * i + 2]);
    }
    return item.grey;
  };
  const toImage = (target, wide, high, paint) => {
    const canvas = document.createElement("canvas");
    canvas.width = wide;
    canvas.height = high;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(wide, high);
    paint(picture.data);
    context.putImageData(picture, 0, 0);
    target.src = canvas.toDataURL();
  };
  const outline = (patch) => {
    // The pixels that hold 95 % of what the patch depends on.
    const field = fields.subarray(patch * size, (patch + 1) * size);
    const order = Array.from(field.keys()).sort((a, b) => field[b] - field[a]);
    const total = field.reduce((a, b) => a + b, 0);
    const inside = new Uint8Array(size);
    let sum = 0;
    for (const i of order) {
      if (sum >= 0.95 * total) break;
      inside[i] = 1;
      sum += field[i];
    }
    return inside;
  };
  const draw = (item) => {
    const shown = values(item);
    const map = pixelMap(shown.values);
    const top = shown.top || largest(map.map(Math.abs)) || 1;
    const base = grey(item);
    const inside = item.patch === null ? null : outline(item.patch);
    toImage(item.map, width, height, (out) => {
      for (let i = 0; i < size; i++) {
        const level = shown.signed ? 0.5 + map[i] / top / 2 : map[i] / top;
        const colour = 3 * Math.round(255 * Math.min(Math.max(level, 0), 1));
        const table = shown.signed ? diverging : inferno;
        const dim = inside && !inside[i] ? 0.35 : 1;
        for (let c = 0; c < 3; c++) {
          out[4 * i + c] = dim * ((1 - data.opacity) * base[i] + data.opacity * table[colour + c]);
        }
        out[4 * i + 3] = 255;
      }
    });
    const highest = shown.values.indexOf(largest(Array.from(shown.values)));
    const what = element("map").selectedOptions[0].textContent;
    const named = shown.k === undefined ? "" : ` ${classes[shown.k]}`;
    item.map.alt = `${what}${named} of ${item.name}, pixel by pixel: highest at the patch in ${place(highest)},` +
      ` ${short(shown.values[highest])}.`;
    item.card.querySelector(".map figcaption").textContent =
      what + named + (item.patch === null ? "" : `; lit: what the patch in ${place(item.patch)} sees`);
  };

  const describe = (item, patch) => {
    const weight = item.attention[0][patch];
    const chances = probabilities(item.logits[patch]);
    const best = Array.from(chances.keys()).sort((a, b) => chances[b] - chances[a]).slice(0, 4);
    return `Patch in ${place(patch)}: weight ${short(weight)}, ${(weight * patches).toFixed(1)} times the even ` +
      `one. Predicts ${best.map((k) => `${classes[k]} ${short(chances[k])}`).join(", ")}.`;
  };
  const choose = (item, patch) => {
    item.patch = patch;
    item.told.textContent = patch === null ? "Choose a patch to see what it sees and says." : describe(item, patch);
    item.card.querySelectorAll(".patches button").forEach((button, p) => {
      button.setAttribute("aria-pressed", String(p === patch));
    });
    draw(item);
  };
  const buildGrid = (item) => {
    const grid = item.card.querySelector(".patches");
    grid.style.gridTemplateColumns = `repeat(${cols}, 1fr)`;
    const top = largest(item.attention[0]) || 1;
    for (let p = 0; p < patches; p++) {
      const button = document.createElement("button");
      const k = item.logits[p].indexOf(largest(item.logits[p]));
      const weight = item.attention[0][p] / top;
      button.type = "button";
      button.textContent = cols <= 8 ? classes[k].slice(0, 5) : "";
      button.style.background = `hsl(${hue(k)} 70% 55% / ${0.12 + 0.88 * weight})`;
      button.tabIndex = p === 0 ? 0 : -1;
      button.setAttribute("aria-label", describe(item, p));
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => choose(item, item.patch === p ? null : p));
      grid.append(button);
    }
    grid.addEventListener("keydown", (event) => {
      const buttons = Array.from(grid.children);
      const at = buttons.indexOf(event.target);
      if (event.key === "Escape") choose(item, null);
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: cols, ArrowUp: -cols };
      const sideways = event.key === "ArrowRight" || event.key === "ArrowLeft";
      const next = at + (steps[event.key] || 0);
      const sameRow = Math.floor(next / cols) === Math.floor(at / cols);
      if (next === at || !buttons[next] || (sideways && !sameRow)) return;
      event.preventDefault();
      buttons[at].tabIndex = -1;
      buttons[next].tabIndex = 0;
      buttons[next].focus();
      choose(item, next);
    });
  };
  const buildBars = (item) => {
    const attention = item.attention[0];
    const order = Array.from(attention.keys()).sort((a, b) => attention[b] - attention[a]).slice(0, 36);
    const top = attention[order[0]] || 1;
    const svg = item.card.querySelector(".weights svg");
    const even = 60 - (60 / patches) / top;
    const bars = order.map((p, place) => {
      const k = item.logits[p].indexOf(largest(item.logits[p]));
      const right = item.label.length ? item.label.includes(k) : k === item.predicted;
      const high = 60 * attention[p] / top;
      return `<rect x="${place * 4 + 0.4}" y="${60 - high}" width="3.2" height="${high}"` +
        ` fill="var(--${right ? "right" : "wrong"})"/>`;
    });
    svg.setAttribute("viewBox", `0 0 ${4 * order.length} 60`);
    svg.innerHTML = bars.join("") + (even > 0 ? `<line x1="0" x2="${4 * order.length}" y1="${even}" y2="${even}"` +
      ` stroke="var(--soft)" stroke-width=".6" stroke-dasharray="2"/>` : "");
  };
  const buildLogits = (item) => {
    const top = Math.max(...item.logits.map((z) => largest(z.map(Math.abs)))) || 1;
    toImage(item.card.querySelector(".logits img"), patches, classes.length, (out) => {
      for (let k = 0; k < classes.length; k++) for (let p = 0; p < patches; p++) {
        const colour = 3 * Math.round(255 * (0.5 + item.logits[p][k] / top / 2));
        const at = 4 * (k * patches + p);
        for (let c = 0; c < 3; c++) out[at + c] = diverging[colour + c];
        out[at + 3] = 255;
      }
    });
  };
  const build = (item) => {
    if (item.built) return;
    item.built = true;
    buildGrid(item);
    buildBars(item);
    buildLogits(item);
    choose(item, null);
  };

  // Cards are filled in when they come near the window.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      const item = items[Number(entry.target.id.slice("image-".length))];
      near.unobserve(entry.target);
      const start = () => build(item);
      if (item.picture.complete) start();
      else item.picture.addEventListener("load", start, { once: true });
    }
  }, { rootMargin: "600px" });
  items.forEach((item) => near.observe(item.card));

  const redraw = () => {
    element("class").disabled = state().map === "attention";
    items.filter((item) => item.built).forEach(draw);
  };
  const arrange = () => {
    const wanted = document.querySelector("input[name=filter]:checked").value;
    const keys = {
      picked: (item) => item.number,
      certainty: (item) => item.certainty,
      entropy: (item) => -item.entropy,
      name: (item) => item.index,
    };
    const key = keys[element("order").value];
    [...items].sort((a, b) => key(a) - key(b) || a.number - b.number).forEach((item) => {
      item.card.hidden = !(wanted === "all" || (item.correct === null ? false : item.correct === (wanted === "right")));
      container.append(item.card);
    });
    const shown = items.filter((item) => !item.card.hidden).length;
    element("status").textContent = `${shown} of ${items.length} images shown`;
  };
  element("map").addEventListener("change", redraw);
  element("class").addEventListener("change", redraw);
  element("order").addEventListener("change", arrange);
  element("layout").addEventListener("change", () => { container.dataset.layout = element("layout").value; });
  document.querySelectorAll("input[name=filter]").forEach((input) => input.addEventListener("change", arrange));
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  redraw();
  arrange();
})();
