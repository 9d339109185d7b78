(() => {
  const data = sd1.data("depth");
  if (data === null) return;
  const { svg, element } = sd1;
  const box = document.getElementById("depth-plot");
  const readout = document.getElementById("depth-readout");
  const honest = sd1.value(data.honest);
  const bugs = sd1.value(data.bugs);
  const shades = 4;
  let plot = data.plots[0];
  let at = null;
  let scales = null;

  /* The block a layer stands in, for the labels below. */
  const block = (name) => {
    const found = name.match(/(down_blocks\.\d+|up_blocks\.\d+|mid_block|layers\.\d+)(\.|$)/);
    return found ? found[1] : name.split(/[.#]/)[0];
  };

  const finite = (x) => x !== null && Number.isFinite(x);
  const wrong = (x) => x !== null && !(x <= sd1.limit);
  const values = (series) => (series.values ??= series.ratios.map(sd1.value));
  const colour = (series) => {
    const labels = [...new Set(plot.series.map((one) => one.label))];
    return `series-${labels.indexOf(series.label) % shades}`;
  };
  const kind = (series) => (series.local ? "local" : "accumulated");

  const scaled = () => {
    const width = Math.max(240, box.clientWidth);
    const height = box.clientHeight;
    const left = 46;
    const wide = width > 640;
    const right = width - (wide ? 128 : 10);
    const top = 26;
    const bottom = height - 30;
    const shown = plot.series.flatMap((one) => values(one).filter((x) => finite(x) && x > 0));
    const low = Math.max(-2, Math.min(-1, Math.floor(Math.log10(Math.min(1, ...shown)))));
    const high = Math.max(2, Math.log10(Math.max(1, ...shown)) + 0.4);
    const span = Math.max(1, plot.names.length - 1);
    return {
      width, wide, height, left, right, top, bottom, low, high,
      size: Math.max(2.4, Math.min(5, ((right - left) / span) * 1.6)),
      x: (i) => left + 6 + (i / span) * (right - left - 12),
      y: (ratio) => {
        if (!Number.isFinite(ratio)) return top + 7;
        const exponent = ratio > 0 ? Math.max(low, Math.log10(ratio)) : low;
        return bottom - ((exponent - low) / (high - low)) * (bottom - top);
      },
    };
  };

  const path = (attributes, points) => svg("path", { ...attributes, d: points.join("") });
  const dot = (x, y) => `M${x - 1.7},${y}a1.7,1.7 0 1,0 3.4,0a1.7,1.7 0 1,0 -3.4,0`;
  const triangle = (x, y, r) => `M${x},${y - 1.1 * r}l${r},${1.9 * r}h${-2 * r}z`;
  const diamond = (x, y, r) => `M${x},${y - r}l${r},${r}l${-r},${r}l${-r},${-r}z`;

  const bands = (s) => {
    const band = (name, from, to) =>
      svg("rect", { class: `band ${name}`, x: s.left, width: s.right - s.left, y: to, height: Math.max(0, from - to) });
    const label = (text, y, name = "") => svg("text", { class: name, x: s.right + 8, y }, text);
    const drawn = [band("honest", s.bottom, s.y(honest)), band("bugs", s.y(bugs), s.top)];
    if (!s.wide) {
      return [...drawn, svg("text", { class: "limit", x: s.right - 4, y: s.y(sd1.limit) - 4, "text-anchor": "end" }, `limit ${sd1.number(sd1.limit)}`)];
    }
    return [
      ...drawn,
      label("known bugs:", s.y(bugs) - 20),
      label(`at least ${sd1.number(bugs)}`, s.y(bugs) - 5),
      label(`limit ${sd1.number(sd1.limit)}`, s.y(sd1.limit) + 4, "limit"),
      label("honest runs:", s.y(honest) + 14),
      label(`at most ${sd1.number(honest)}`, s.y(honest) + 29),
    ];
  };

  const grid = (s) => {
    const drawn = [];
    const step = Math.ceil((s.high - s.low) / 8);
    for (let decade = s.low; decade <= s.high; decade += step) {
      const y = s.y(10 ** decade);
      const name = decade > 3 ? `1e${decade}` : String(10 ** decade).replace(/^(0\.\d{1,3}).*/, "$1");
      drawn.push(svg("line", { class: "grid", x1: s.left, x2: s.right, y1: y, y2: y }));
      drawn.push(svg("text", { x: s.left - 6, y: y + 4, "text-anchor": "end" }, name));
    }
    return drawn;
  };

  const blocks = (s) => {
    const drawn = [];
    let start = 0;
    for (let i = 1; i <= plot.names.length; i += 1) {
      const name = block(plot.names[start]);
      if (i < plot.names.length && block(plot.names[i]) === name) continue;
      const from = s.x(start - 0.5);
      const room = s.x(i - 0.5) - from;
      if (start > 0) drawn.push(svg("line", { class: "edge", x1: from, x2: from, y1: s.top, y2: s.bottom + 6 }));
      const short = name.replace("down_blocks.", "down ").replace("up_blocks.", "up ").replace("_block", "").replace("layers.", "");
      const text = [name, short].find((candidate) => candidate.length * 6.6 + 8 < room);
      if (text) drawn.push(svg("text", { x: from + room / 2, y: s.bottom + 18, "text-anchor": "middle" }, text));
      start = i;
    }
    return drawn;
  };

  const lines = (s) => plot.series.flatMap((series) => {
    const points = values(series).map((ratio, i) => ({ ratio, x: +s.x(i).toFixed(1), y: ratio === null ? 0 : +s.y(ratio).toFixed(1) }));
    const known = points.filter((point) => point.ratio !== null);
    const mark = series.local ? triangle : diamond;
    const joined = known.map((point, i) => `${i ? "L" : "M"}${point.x},${point.y}`);
    return [
      svg("g", { class: colour(series) },
        path({ class: series.local ? "local" : "trace" }, joined),
        series.local ? path({ class: "dots" }, known.filter((p) => !wrong(p.ratio)).map((p) => dot(p.x, p.y))) : null,
        path({ class: "beyond" }, known.filter((p) => wrong(p.ratio)).map((p) => mark(p.x, p.y, s.size)))),
    ];
  });

  const flag = (s) => {
    const i = plot.first ? plot.names.indexOf(plot.first) : -1;
    if (i < 0) return [];
    const x = s.x(i);
    const rightwards = x < s.width / 2;
    const name = plot.first.length * 7 < s.width * 0.8 ? plot.first : `…${plot.first.slice(-24)}`;
    return [
      svg("line", { class: "flag", x1: x, x2: x, y1: s.top - 6, y2: s.bottom }),
      svg("text", { class: "flag", x: x + (rightwards ? -4 : 4), y: s.top - 10, "text-anchor": rightwards ? "start" : "end" }, name),
    ];
  };

  const draw = () => {
    const labels = new Set(plot.series.map((one) => one.label));
    document.getElementById("depth").classList.toggle("many", labels.size > 1);
    const s = scaled();
    scales = s;
    const limit = s.y(sd1.limit);
    box.replaceChildren(svg("svg", { width: s.width, height: s.height, "aria-hidden": "true" },
      bands(s), grid(s), blocks(s),
      svg("line", { class: "limit", x1: s.left, x2: s.right, y1: limit, y2: limit }),
      lines(s), flag(s),
      svg("line", { class: "cursor", y1: s.top, y2: s.bottom, visibility: "hidden" })));
  };

  const text = (i) => [
    `${i + 1}. ${plot.names[i]}`,
    ...plot.series.filter((one) => values(one)[i] !== null).map(
      (one) => `${sd1.number(values(one)[i])}${wrong(values(one)[i]) ? " ▲" : ""} ${kind(one)} (${one.label})`),
  ];

  const move = sd1.cursor(box, () => plot.names.length, (i) => {
    at = i;
    readout.textContent = text(i).join("\n");
    const cursor = box.querySelector(".cursor");
    cursor.setAttribute("x1", scales.x(i));
    cursor.setAttribute("x2", scales.x(i));
    cursor.setAttribute("visibility", "visible");
  });
  const nearest = (event) => {
    const x = event.clientX - box.getBoundingClientRect().left;
    const share = (x - scales.x(0)) / Math.max(1, scales.x(plot.names.length - 1) - scales.x(0));
    return Math.round(share * (plot.names.length - 1));
  };
  box.addEventListener("pointermove", (event) => {
    move(nearest(event));
    sd1.tip(event.clientX, event.clientY, text(at).join("\n"));
  });
  box.addEventListener("pointerleave", () => sd1.tip(0, 0, ""));

  const legend = () => {
    const sample = (series) => svg("svg", { width: 34, height: 14, class: colour(series), "aria-hidden": "true" },
      svg("path", { class: series.local ? "local" : "trace", d: "M1,7H33" }),
      series.local ? path({ class: "dots" }, [dot(9, 7), dot(25, 7)]) : null);
    const mark = (shape, words) => element("span", {}, svg("svg", { width: 14, height: 14, "aria-hidden": "true" },
      path({ class: "beyond" }, [shape(7, 7, 4.6)])), ` ${words}`);
    const swatch = (name, words) => element("span", { class: "narrow" }, svg("svg", { width: 14, height: 14, "aria-hidden": "true" },
      svg("rect", { class: `band ${name}`, width: 14, height: 14 })), ` ${words}`);
    document.getElementById("depth-legend").replaceChildren(
      ...plot.series.map((one) => element("span", {}, sample(one), ` ${one.label}, ${kind(one)}`)),
      mark(triangle, "local, beyond the limit"), mark(diamond, "accumulated, beyond the limit"),
      swatch("bugs", `known bugs: at least ${sd1.number(bugs)}`), swatch("honest", `honest runs: at most ${sd1.number(honest)}`));
  };

  const show = (index) => {
    plot = data.plots[index];
    const left = [[plot.probes_left_out, "layers"], [plot.series_left_out, "executions"]];
    readout.textContent = ["Point at a layer, or go there with the arrow keys, to read its ratios.",
      ...left.filter(([n]) => n > 0).map(([n, what]) => `${n} more ${what} are in results.jsonl.`)].join(" ");
    draw();
    legend();
  };

  const choice = element("select", { onchange: (event) => show(Number(event.target.value)) },
    data.plots.map((one, i) => element("option", { value: i }, one.case)));
  document.getElementById("depth-controls").append(
    data.plots.length > 1
      ? element("label", {}, "Case, one for each component", choice)
      : element("p", { class: "muted" }, `Case ${plot.case}`));
  show(0);
  sd1.onWidth(box, draw);
})();
