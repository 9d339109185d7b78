/* Error over depth: one plot for every case, drawn to the width that it has. */
(() => {
  const plots = sd1.data("audit") || {};
  const { svg } = sd1;
  const known = (x) => x !== null && x > 0;

  const scaled = (box, plot) => {
    const all = [...plot.err, ...plot.local, ...plot.noise].filter(known).map(Math.log10).sort((a, b) => a - b);
    const low = Math.floor((all[Math.floor(all.length / 50)] ?? -1) - 0.05); // a few nearly exact layers are drawn at the bottom
    const high = Math.max(low + 1, Math.ceil(all[all.length - 1] ?? 0));
    const width = box.clientWidth;
    const height = box.clientHeight;
    const [left, right, top, bottom] = [44, width - 10, 12, height - 26];
    const span = Math.max(1, plot.names.length - 1);
    return {
      width, height, left, right, top, bottom, low, high,
      x: (i) => +(left + 4 + (i / span) * (right - left - 8)).toFixed(1),
      y: (value) => +(bottom - ((Math.max(low, Math.log10(value)) - low) / (high - low)) * (bottom - top)).toFixed(1),
    };
  };

  const grid = (s) => {
    const decades = Array.from({ length: s.high - s.low + 1 }, (_, i) => 10 ** (s.low + i));
    const between = s.high - s.low < 3 ? decades.slice(0, -1).flatMap((x) => [2 * x, 5 * x]) : [];
    return [...decades, ...between].flatMap((value) => {
      const y = s.y(value);
      const text = value >= 0.0099 ? String(Number(value.toPrecision(1))) : value.toExponential(0);
      return [
        svg("line", { class: "grid", x1: s.left, x2: s.right, y1: y, y2: y }),
        svg("text", { x: s.left - 5, y: y + 4, "text-anchor": "end" }, text),
      ];
    });
  };

  const stages = (s, plot) => {
    const drawn = [];
    let start = 0;
    for (let i = 1; i <= plot.stages.length; i += 1) {
      if (i < plot.stages.length && plot.stages[i] === plot.stages[start]) continue;
      const from = s.x(start - 0.5);
      const room = s.x(i - 0.5) - from;
      if (start > 0) drawn.push(svg("line", { class: "edge", x1: from, x2: from, y1: s.top, y2: s.bottom + 5 }));
      const name = plot.stages[start];
      const short = name.replace("down_blocks.", "down ").replace("up_blocks.", "up ").replace("_block", "");
      const text = [name, short].find((one) => one.length * 6.6 + 8 < room);
      if (text) drawn.push(svg("text", { x: from + room / 2, y: s.bottom + 17, "text-anchor": "middle" }, text));
      start = i;
    }
    return drawn;
  };

  /* The reference's noise as a band from the bottom: an unknown value leaves a gap. */
  const band = (s, plot) => {
    const runs = [];
    let run = [];
    [...plot.noise, null].forEach((value, i) => {
      if (known(value)) run.push([s.x(i), s.y(value)]);
      else if (run.length) { runs.push(run); run = []; }
    });
    return runs.map((points) => svg("path", { class: "noise",
      d: `M${points[0][0] - 1},${s.bottom}${points.map(([x, y]) => `L${x},${y}`).join("")}L${points[points.length - 1][0] + 1},${s.bottom}Z` }));
  };

  const line = (s, plot) => {
    let pen = "M";
    const d = plot.err.map((value, i) => {
      if (!known(value)) { pen = "M"; return ""; }
      const step = `${pen}${s.x(i)},${s.y(value)}`;
      pen = "L";
      return step;
    }).join("");
    return svg("path", { class: "trace", d });
  };

  const text = (plot, i) => [
    `${i + 1}. ${plot.names[i]}`,
    `error ${sd1.number(plot.err[i])}, own ${sd1.number(plot.local[i])}, noise ${sd1.number(plot.noise[i])}`,
    `share of the output's error ${plot.share[i] === null ? "–" : `${(100 * plot.share[i]).toFixed(2)} %`}`,
  ].join("\n");

  for (const box of document.querySelectorAll(".plot")) {
    const plot = plots[box.dataset.component][Number(box.dataset.index)];
    const readout = box.nextElementSibling;
    let s;
    const draw = () => {
      s = scaled(box, plot);
      const dots = plot.local.map((value, i) => (known(value)
        ? svg("circle", { class: "own", cx: s.x(i), cy: s.y(value), r: plot.names.length > 200 ? 1.2 : 2 }) : null));
      box.replaceChildren(svg("svg", { width: s.width, height: s.height, "aria-hidden": "true" },
        band(s, plot), grid(s), stages(s, plot), line(s, plot), dots,
        svg("line", { class: "cursor", y1: s.top, y2: s.bottom, visibility: "hidden" })));
    };
    const move = sd1.cursor(box, () => plot.names.length, (i) => {
      readout.textContent = text(plot, i).replaceAll("\n", "; ");
      const cursor = box.querySelector(".cursor");
      cursor.setAttribute("x1", s.x(i));
      cursor.setAttribute("x2", s.x(i));
      cursor.setAttribute("visibility", "visible");
    });
    box.addEventListener("pointermove", (event) => {
      const x = event.clientX - box.getBoundingClientRect().left;
      const share = (x - s.x(0)) / Math.max(1, s.x(plot.names.length - 1) - s.x(0));
      const i = Math.max(0, Math.min(plot.names.length - 1, Math.round(share * (plot.names.length - 1))));
      move(i);
      sd1.tip(event.clientX, event.clientY, text(plot, i));
    });
    box.addEventListener("pointerleave", () => sd1.tip(0, 0, ""));
    sd1.onWidth(box, draw);
  }
})();
