/* The table of cases: filters, order, page and opened case all live in the address. */
(() => {
  const data = sd1.data("cases");
  const count = data.id.length;
  if (count === 0) return;
  const PAGE = 50;
  const keys = ["verdict", "component", "variant", "dtype", "device", "backend", "mode"];
  const get = (id) => document.getElementById(id);
  const [form, table, total, apart, pages] = [
    "cases-form",
    "cases-table",
    "cases-count",
    "cases-apart",
    "cases-pages",
  ].map(get);
  const body = table.tBodies[0];
  const word = (key, i) => data[key].names[data[key].of[i]];
  const index = new Map(data.id.map((id, i) => [id, i]));
  const find = (id) => index.get(id) ?? data.id.findIndex((one) => one.startsWith(`${id}::`));
  const breakable = (text) =>
    text.split(/(?=\[)|(?<=[./])/).flatMap((part, i) => (i ? [sd1.element("wbr"), part] : [part]));
  const inside = (name, path) => name === path || name.startsWith(`${path}.`);

  /* Filters. */
  let heap = null;
  const texts = () => {
    heap =
      heap ||
      data.id.map((id, i) =>
        [id, word("worst", i), word("first", i), word("message", i), word("hunts", i)].join(" ").toLowerCase(),
      );
    return heap;
  };
  const matching = (state) => {
    const tests = keys
      .filter((key) => state[key])
      .map((key) => {
        const wanted = state[key].split(",");
        const fits = data[key].names.map((name) => wanted.includes(name));
        return (i) => fits[data[key].of[i]];
      });
    if (state.probe) {
      const [worst, first] = [data.worst, data.first].map(({ names }) =>
        names.map((name) => inside(name, state.probe)),
      );
      tests.push((i) => worst[data.worst.of[i]] || first[data.first.of[i]]);
    }
    for (const part of (state.q || "").toLowerCase().split(/\s+/).filter(Boolean)) {
      const all = texts();
      tests.push((i) => all[i].includes(part));
    }
    return data.order.filter((i) => tests.every((test) => test(i)));
  };

  /* Order: by urgency, or by one column; `-` before its name turns it around. */
  const badness = (value) => {
    const x = sd1.value(value);
    return x === null ? -1 : Number.isNaN(x) ? Infinity : x;
  };
  const by = {
    case: (i, j) => (data.id[i] < data.id[j] ? -1 : data.id[i] > data.id[j] ? 1 : 0),
    ratio: (i, j) => badness(data.ratio[i]) - badness(data.ratio[j]) || 0,
    probe: (i, j) => word("worst", i).localeCompare(word("worst", j)),
    seconds: (i, j) => badness(data.seconds[i]) - badness(data.seconds[j]) || 0,
  };
  const columns = [
    ["verdict", "Verdict"],
    ["case", "Case"],
    ["ratio", "Worst ratio"],
    ["probe", "At"],
    ["seconds", "Seconds"],
    ["message", "Message, or what it hunts"],
  ];
  const ordered = (found, sort = "") => {
    const name = sort.replace(/^-/, "");
    if (name === "verdict") return found.slice().reverse();
    if (!Object.hasOwn(by, name)) return found;
    const sign = sort.startsWith("-") ? -1 : 1;
    return found.slice().sort((i, j) => sign * by[name](i, j));
  };

  /* One case, opened. */
  const probes = (rows, title, first) => {
    const heads = ["#", "Verdict", "Ratio", "Probe", "Error", "Noise", "RMS", "Max abs", "Shape"];
    const lines = rows.map((row) =>
      sd1.element(
        "tr",
        { class: row[3].split(" ")[0] === first ? "first" : null },
        row.map((text, k) =>
          k === 3
            ? sd1.element("th", { scope: "row" }, text)
            : sd1.element("td", {}, k === 1 ? sd1.element("span", { class: mark(text) }, text) : String(text)),
        ),
      ),
    );
    return sd1.element(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
      sd1.element(
        "table",
        { class: "probes" },
        sd1.element("caption", {}, title),
        sd1.element(
          "thead",
          {},
          sd1.element(
            "tr",
            {},
            heads.map((head) => sd1.element("th", { scope: "col" }, head)),
          ),
        ),
        sd1.element("tbody", {}, lines),
      ),
    );
  };
  const mark = (verdict) => (data.verdicts.includes(verdict) ? `v ${verdict}` : "");
  const command = (i) => {
    const text = word("rerun", i).replace("\u0001", () => data.id[i].split("[")[0]);
    const button = sd1.element(
      "button",
      {
        type: "button",
        class: "copy",
        onclick: async () => {
          button.textContent = (await sd1.copy(text)) ? "Copied" : "Select it and press Ctrl+C";
        },
      },
      "Copy",
    );
    return sd1.element("div", { class: "command" }, sd1.element("pre", {}, sd1.element("code", {}, text)), button);
  };
  const opened = (i, note) => {
    const more = Object.hasOwn(data.details, data.id[i]) ? data.details[data.id[i]] : null;
    const first = word("first", i);
    const facts = [
      ["Worst ratio", `${sd1.number(data.ratio[i])}${word("worst", i) && ` at ${word("worst", i)}`}`],
      [
        "First divergence",
        first &&
          `${first}${more && more.after ? `, after ${more.after}` : ""}${more ? `: ${more.measured}, ${more.kind}` : ""}`,
      ],
      ["Hint", more && more.hint],
      ["Message", more ? more.message : word("message", i)],
      ["Hunts", word("hunts", i)],
    ].filter(([, text]) => text);
    const close = sd1.element("button", { type: "button", onclick: () => sd1.go({ case: null }) }, "Close");
    return sd1.element(
      "div",
      { class: "opened-case", tabindex: -1 },
      sd1.element(
        "div",
        { class: "panel-head" },
        sd1.element(
          "h3",
          {},
          breakable(data.id[i]),
          " ",
          sd1.element("span", { class: mark(word("verdict", i)) }, word("verdict", i)),
        ),
        close,
      ),
      note ? sd1.element("p", { class: "note" }, note) : null,
      sd1.element(
        "dl",
        {},
        facts.flatMap(([name, text]) => [sd1.element("dt", {}, name), sd1.element("dd", {}, text)]),
      ),
      more && more.detail ? sd1.element("pre", {}, sd1.element("code", {}, more.detail)) : null,
      command(i),
      more
        ? [
            probes(more.around, first ? "Around the first divergence" : "From the first wrong probe", first),
            probes(more.worst, `The worst of ${more.total} probes`, first),
            sd1.element("p", { class: "note" }, "≈: measured on a sketch of the tensor, not on the whole."),
          ]
        : null,
    );
  };

  /* Rows of the page shown. */
  const row = (i, state) => {
    const open = find(state.case || "") === i;
    const href = `#case=${encodeURIComponent(data.id[i])}`;
    const opener = sd1.element(
      "a",
      { href, class: "opener", "aria-expanded": String(open), "data-case": i },
      breakable(data.id[i]),
    );
    const cells = [
      sd1.element("td", {}, sd1.element("span", { class: mark(word("verdict", i)) }, word("verdict", i))),
      sd1.element("th", { scope: "row" }, opener),
      sd1.element("td", { "data-label": "worst ratio" }, sd1.number(data.ratio[i])),
      sd1.element(
        "td",
        { class: "probe", "data-label": word("worst", i) ? "at" : null },
        breakable(word("worst", i)),
      ),
      sd1.element("td", { "data-label": "seconds" }, sd1.number(data.seconds[i])),
      sd1.element("td", {}, sd1.element("div", { class: "says" }, word("message", i) || word("hunts", i))),
    ];
    const rows = [sd1.element("tr", {}, cells)];
    if (open)
      rows.push(sd1.element("tr", { class: "opened" }, sd1.element("td", { colspan: columns.length }, opened(i))));
    return rows;
  };

  let shown = { text: "", found: [] };
  let last = null;
  const update = (state) => {
    const picked = Object.fromEntries([...keys, "q", "probe", "sort"].map((key) => [key, state[key]]));
    const text = JSON.stringify(picked);
    if (text !== shown.text) shown = { text, found: ordered(matching(state), state.sort) };
    const { found } = shown;
    const most = Math.max(1, Math.ceil(found.length / PAGE));
    const wanted = state.case ? find(state.case) : -1;
    const arrived = wanted >= 0 && state.case !== last;
    const place = found.indexOf(wanted);
    let page = Math.max(1, Math.min(most, Number(state.page) || 1));
    if (arrived && place >= 0) page = Math.floor(place / PAGE) + 1;
    const visible = found.slice((page - 1) * PAGE, page * PAGE);
    const held = document.activeElement.dataset.case;
    body.replaceChildren(...visible.flatMap((i) => row(i, state)));
    const again = held === undefined ? null : body.querySelector(`[data-case="${held}"]`);
    if (again !== null) again.focus({ preventScroll: true });
    const elsewhere = wanted >= 0 && !visible.includes(wanted);
    const unknown = state.case && wanted < 0;
    apart.replaceChildren(
      ...(elsewhere
        ? [opened(wanted, place < 0 ? "The filters leave this case out." : "It is on another page of the table.")]
        : []),
      ...(unknown ? [sd1.element("p", { class: "note" }, `This run has no case ${state.case}.`)] : []),
    );
    const stretch = most > 1 ? `, ${(page - 1) * PAGE + 1} to ${(page - 1) * PAGE + visible.length} shown` : "";
    const filtered = found.length < count ? ` of ${count}` : "";
    total.textContent = `${found.length}${filtered} case${count === 1 ? "" : "s"}${state.probe ? `, wrong or worst in ${state.probe}` : ""}${stretch}`;
    controls(state, page, most);
    if (arrived) {
      const box = document.querySelector(".opened-case");
      box.scrollIntoView({ block: "nearest" });
      if (last !== null && again === null) box.focus({ preventScroll: true });
    }
    last = state.case || "";
  };

  /* Controls: made once, then told what the address says. */
  const labels = {
    fail: "failing",
    error: "broke",
    xfail: "known to fail",
    xpass: "passed, listed to fail",
    skip: "skipped",
    pass: "passing",
    warn: "warning",
  };
  for (const key of keys) {
    const present = new Set(data[key].names);
    const names =
      key === "verdict" ? data.verdicts.filter((name) => present.has(name)) : [...present].filter(Boolean);
    const wrong = names.filter((name) => ["fail", "error", "xpass"].includes(name)).join();
    form.elements[key].append(
      sd1.element("option", { value: "" }, "any"),
      ...(key === "verdict" && wrong.includes(",")
        ? [sd1.element("option", { value: wrong }, "failing or broke")]
        : []),
      ...names.map((name) => sd1.element("option", { value: name }, key === "verdict" ? labels[name] : name)),
    );
    form.elements[key].parentElement.hidden = names.length < 2;
  }
  const orders = [
    ["", "most urgent first"],
    ["case", "name"],
    ["-ratio", "worst ratio first"],
    ["ratio", "best ratio first"],
    ["probe", "probe"],
    ["-seconds", "slowest first"],
  ];
  form.elements.sort.append(...orders.map(([value, text]) => sd1.element("option", { value }, text)));
  const heads = columns.map(([key, text]) => {
    const sorts = key === "verdict" || key in by;
    const button = sorts ? sd1.element("button", { type: "button", "data-sort": key }, text) : text;
    return sd1.element("th", { scope: "col", "data-head": sorts ? text : null }, button);
  });
  table.tHead.rows[0].append(...heads);
  table.prepend(
    sd1.element(
      "colgroup",
      {},
      columns.map(([key]) => sd1.element("col", { class: key })),
    ),
  );
  const controls = (state, page, most) => {
    for (const key of [...keys, "sort", "q"]) {
      const input = form.elements[key];
      const value = state[key] || "";
      if (input === document.activeElement && key === "q") continue; // never under the hands of who types
      if (input.tagName === "SELECT" && ![...input.options].some((option) => option.value === value)) {
        input.append(sd1.element("option", { value }, value));
      }
      input.value = value;
    }
    columns.forEach(([key], i) => {
      const sort = state.sort || "verdict";
      const way =
        sort === key
          ? key === "verdict" && state.sort
            ? "descending"
            : "ascending"
          : sort === `-${key}`
            ? "descending"
            : null;
      if (way) heads[i].setAttribute("aria-sort", way);
      else heads[i].removeAttribute("aria-sort");
    });
    const step = (to, text) =>
      sd1.element(
        "button",
        {
          type: "button",
          disabled: to < 1 || to > most,
          onclick: () => sd1.go({ page: to > 1 ? to : null, case: null }),
        },
        text,
      );
    pages.hidden = most < 2;
    pages.replaceChildren(step(page - 1, "Previous"), `Page ${page} of ${most}`, step(page + 1, "Next"));
  };
  form.addEventListener("input", (event) => {
    const { name, value } = event.target;
    const change = name === "q" ? sd1.set : sd1.go;
    change({ [name]: value, page: null });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  get("cases-clear").addEventListener("click", () => {
    form.elements.q.value = "";
    sd1.go(Object.fromEntries([...keys, "q", "probe", "sort", "page", "case"].map((key) => [key, null])));
  });
  table.tHead.addEventListener("click", (event) => {
    const key = event.target.dataset.sort;
    if (key === undefined) return;
    const first = key === "ratio" || key === "seconds" ? `-${key}` : key === "verdict" ? "" : key;
    const second = key === "ratio" || key === "seconds" || key === "verdict" ? key : `-${key}`;
    sd1.go({ sort: (sd1.state.sort || "") === first ? second : first, page: null });
  });
  body.addEventListener("click", (event) => {
    const opener = event.target.closest(".opener");
    if (opener === null || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const id = data.id[Number(opener.dataset.case)];
    sd1.go({ case: opener.getAttribute("aria-expanded") === "true" ? null : id });
  });
  for (const part of [form, table, total]) part.hidden = false;
  sd1.onState(update);
})();
