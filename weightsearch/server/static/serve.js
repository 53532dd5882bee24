"use strict";
// Drop files on the form; click a column's name to sort by it; save a table as it is sorted. The page works without.
const form = document.getElementById("drop");
if (form) {
  const input = document.getElementById("file");
  for (const name of ["dragover", "dragleave", "drop"]) {
    form.addEventListener(name, (event) => {
      event.preventDefault();
      form.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) {
        input.files = event.dataTransfer.files;
        form.requestSubmit();
      }
    });
  }
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    let way = 1;
    button.addEventListener("click", () => {
      const body = table.tBodies[0];
      const text = (row) => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const left = Number(text(a)), right = Number(text(b));
        const numbers = text(a) !== "" && text(b) !== "" && !Number.isNaN(left) && !Number.isNaN(right);
        return way * (numbers ? left - right : text(a).localeCompare(text(b)));
      });
      way = -way;
      body.append(...rows);
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way < 0 ? "ascending" : "descending");
    });
  });
}
const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
for (const button of document.querySelectorAll("button.save")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const rows = [...document.getElementById(button.dataset.table).rows];
    const cells = (row) => [...row.cells].map((cell) => quoted(cell.textContent.trim().replace(/\s+/g, " ")));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([rows.map((row) => cells(row).join(",")).join("\n") + "\n"], { type: "text/csv" }));
    link.download = button.dataset.file;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
