/* What the scripts of all sections share, as `window.sd1`.
 *
 * sd1.data(name)      the data block of section `name`, or null; a number that JSON lacks is the text
 *                     "nan", "inf" or "-inf" in it: sd1.value(x) makes it a number again
 * sd1.limit           the limit of the run
 * sd1.state           the filters, read from the address: #component=unet&verdict=fail
 * sd1.set({k: v})     changes filters, in the address too; a value of null or "" takes one out
 * sd1.go({k: v})      the same as a step that the browser's back takes back
 * sd1.onState(fn)     calls fn(state) now and whenever they change
 *                     Keys that mean the same everywhere: `case` (the id of a case to open), `probe`,
 *                     `component`, `variant`, `dtype`, `device`, `backend`, `mode`, `verdict`, `q` (words).
 *                     So a link to a case is <a href="#case=..."> with the id URI-encoded.
 * sd1.colour(ratio)   the one colour scale of ratios: blue within the limit, orange beyond it
 * sd1.ink(colour)     black or white, whichever can be read on a colour of that scale
 * sd1.onTheme(fn)     calls fn when colours change (light, dark, print): canvases draw again
 * sd1.tip(x, y, text) shows a tooltip at a point of the window; without text it goes away
 * sd1.number(x)       a number in about three significant digits, as the Python side writes it
 * sd1.copy(text)      puts a text on the clipboard; a promise of whether that was allowed
 * sd1.element(tag, attributes, ...children)   an element; texts are texts, never markup
 * sd1.svg(tag, attributes, ...children)       the same for SVG
 * sd1.onWidth(node, fn)   calls fn now and whenever the node gets wider or narrower
 * sd1.key()           that scale as a small picture with its numbers
 * sd1.cursor(node, count, show)   arrow keys, Home and End on a node move through count() items: show(index)
 *                     is called for each; the function returned moves there by other means (a pointer). Of a grid,
 *                     a fourth argument says how many items a row has, for the keys up and down
 */
"use strict";
window.sd1 = (() => {
  const data = (name) => {
    const block = document.getElementById(`data-${name}`);
    return block === null ? null : JSON.parse(block.textContent);
  };

  const words = { nan: NaN, inf: Infinity, "-inf": -Infinity };
  const value = (x) => (x === null || x === undefined ? null : x in words ? words[x] : Number(x));
  const limit = value((data("page") || {}).limit) || 4;

  const number = (given) => {
    const x = value(given);
    if (x === null) return "–";
    if (Number.isNaN(x)) return "not a number";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "-∞";
    const size = Math.abs(x);
    if (size === 0) return "0";
    if (size < 1e-3 || size >= 1e5) return x.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
    return size < 1e3 ? String(Number(x.toPrecision(3))) : x.toFixed(0);
  };

  /* Filters in the address. */
  const listeners = [];
  const state = {};
  const read = () => {
    const text = window.location.hash.slice(1);
    if (text && !text.includes("=")) return; // a link to a section leaves the filters alone
    for (const key of Object.keys(state)) delete state[key];
    for (const [key, v] of new URLSearchParams(text)) state[key] = v;
  };
  const tell = () => listeners.forEach((listener) => listener(state));
  const set = (changes) => {
    for (const [key, v] of Object.entries(changes)) {
      if (v === null || v === undefined || v === "") delete state[key];
      else state[key] = String(v);
    }
    const text = new URLSearchParams(state).toString();
    history.replaceState(null, "", `#${text}`);
    tell();
  };
  const go = (changes) => {
    history.pushState(null, "", window.location.href);
    set(changes);
  };
  const onState = (listener) => {
    listeners.push(listener);
    listener(state);
  };
  read();
  window.addEventListener("hashchange", () => {
    read();
    tell();
  });

  /* One scale of colours: log10 of ratio over limit, [at, red, green, blue]. */
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const print = window.matchMedia("print");
  const scales = {
    light: [
      [-3, 236, 242, 248], [-0.9, 190, 214, 236], [-0.31, 120, 170, 214], [0, 84, 140, 194],
      [0.0001, 248, 200, 120], [1.5, 236, 134, 40], [3.5, 190, 72, 6], [6, 110, 34, 4],
    ],
    dark: [
      [-3, 28, 40, 54], [-0.9, 32, 60, 90], [-0.31, 44, 92, 138], [0, 72, 130, 186],
      [0.0001, 150, 92, 32], [1.5, 214, 122, 36], [3.5, 248, 162, 76], [6, 255, 222, 178],
    ],
  };
  const colour = (ratio) => {
    const x = value(ratio);
    const scale = scales[dark.matches && !print.matches ? "dark" : "light"];
    if (x === null) return "transparent";
    const at = Number.isFinite(x) ? (x > 0 ? Math.log10(x / limit) : -9) : 9;
    const next = scale.findIndex((stop) => stop[0] >= at);
    if (next === 0) return `rgb(${scale[0].slice(1).join()})`;
    if (next < 0) return `rgb(${scale[scale.length - 1].slice(1).join()})`;
    const [low, high] = [scale[next - 1], scale[next]];
    const part = (at - low[0]) / (high[0] - low[0]);
    return `rgb(${[1, 2, 3].map((i) => Math.round(low[i] + part * (high[i] - low[i]))).join()})`;
  };
  const ink = (colour) => {
    const [red, green, blue] = (colour.match(/\d+/g) || [255, 255, 255]).map((x) => (x / 255) ** 2.2);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#111" : "#fff";
  };
  const onTheme = (redraw) => [dark, print].forEach((query) => query.addEventListener("change", redraw));

  const onWidth = (node, redraw) => {
    let width = -1;
    new ResizeObserver(() => {
      if (node.clientWidth === width || node.clientWidth === 0) return;
      width = node.clientWidth;
      redraw();
    }).observe(node);
  };

  /* Elements, without markup. */
  const build = (made, attributes, children) => {
    for (const [key, v] of Object.entries(attributes || {})) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), v);
      else if (v === true) made.setAttribute(key, "");
      else if (v !== false && v !== null && v !== undefined) made.setAttribute(key, v);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  };
  const element = (tag, attributes, ...children) =>
    build(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const cursor = (node, count, show, columns = () => 1) => {
    let at = -1;
    const move = (to) => {
      at = Math.max(0, Math.min(count() - 1, to));
      show(at);
    };
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 };
    const rows = { ArrowUp: -1, ArrowDown: 1 };
    node.addEventListener("keydown", (event) => {
      if (event.key in steps) move(at + steps[event.key]);
      else if (event.key in rows) move(at + rows[event.key] * columns());
      else if (event.key === "Home") move(0);
      else if (event.key === "End") move(count() - 1);
      else return;
      event.preventDefault();
    });
    return move;
  };

  const key = () => {
    const ticks = [0.1, 1, limit, 100, 1e4, 1e6];
    const at = (ratio) => 10 + 30 * (Math.log10(ratio) + 1);
    const drawn = svg("svg", { class: "key", width: 240, height: 30, role: "img", "aria-label": "Colours of ratios" });
    const paint = () => {
      const cells = Array.from({ length: 70 }, (_, i) => svg("rect", { x: 10 + 3 * i, width: 3.2, height: 10,
        fill: colour(10 ** ((3 * i + 1.5) / 30 - 1)) }));
      drawn.replaceChildren(...cells, svg("path", { class: "mark", d: `M${at(limit)},-1V13` }), ...ticks.map((ratio) =>
        svg("text", { x: at(ratio), y: 25, "text-anchor": "middle" }, ratio >= 1e4 ? `1e${Math.log10(ratio)}` : number(ratio))));
    };
    paint();
    onTheme(paint);
    return drawn;
  };

  const bubble = document.body.appendChild(element("div", { class: "tip", role: "tooltip", hidden: true }));
  const tip = (x, y, text) => {
    bubble.hidden = !text;
    if (!text) return;
    bubble.textContent = text;
    const { width, height } = bubble.getBoundingClientRect();
    const left = Math.min(x + 12, document.documentElement.clientWidth - width - 4);
    const below = y + 16 + height > window.innerHeight;
    bubble.style.left = `${Math.max(4, left)}px`;
    bubble.style.top = `${below ? y - height - 10 : y + 16}px`;
  };

  /* Copying: where the clipboard is refused, the text is shown selected, ready for Ctrl+C. */
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  };
  const offer = (button, text) => {
    const area = element("textarea", { class: "copied", readonly: true, rows: 8, "aria-label": "Text to copy" });
    area.value = text;
    button.after(area);
    area.focus();
    area.select();
    area.addEventListener("blur", () => area.remove());
  };
  for (const button of document.querySelectorAll("button.copy")) {
    const label = button.textContent;
    const { from } = button.dataset;
    const source = from ? document.getElementById(from) : button.parentElement.querySelector("code");
    const text = source.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const done = await copy(text);
      if (!done) offer(button, text);
      button.textContent = done ? "Copied" : "Press Ctrl+C to copy";
      window.setTimeout(() => { button.textContent = label; }, 2500);
    });
  }

  return { data, value, limit, number, state, set, go, onState, colour, ink, onTheme, onWidth, element, svg, key, cursor, tip, copy };
})();
