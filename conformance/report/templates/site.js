/* The table of ports, sorted by the column that the address names: #sort=ratio, or #sort=-ratio. */
(() => {
  const table = document.querySelector(".ports");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const key = (row, column) => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    const bothNumbers = [a, b].every((text) => text !== "" && !Number.isNaN(Number(text)));
    return bothNumbers ? Number(a) - Number(b) : a.localeCompare(b);
  };

  for (const head of heads) {
    const button = sd1.element("button", { type: "button" }, head.textContent);
    button.addEventListener("click", () => {
      const name = head.dataset.key;
      sd1.set({ sort: sd1.state.sort === name ? `-${name}` : name });
    });
    head.replaceChildren(button);
  }

  sd1.onState((state) => {
    const wanted = state.sort || "";
    const down = wanted.startsWith("-");
    const column = heads.findIndex((head) => head.dataset.key === wanted.replace(/^-/, ""));
    const sorted = [...rows];
    if (column >= 0) {
      sorted.sort((a, b) => (down ? -1 : 1) * compare(key(a, column), key(b, column)));
    }
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    body.append(...sorted);
  });
})();
