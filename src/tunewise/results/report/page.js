"use strict";
const byId = (id) => document.getElementById(id);
const all = (query, root = document) => [...root.querySelectorAll(query)];

// The table is sorted by its header; rows without a value come last, and failed rows are in a separate body at the end.
const heads = all("#table thead th");
heads.forEach((head, place) => head.firstElementChild.addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") === "ascending";
  heads.forEach((other) => other.setAttribute("aria-sort", other === head ? (down ? "descending" : "ascending") : "none"));
  const value = (row) => place ? parseFloat(row.cells[place].dataset.value) : row.cells[0].textContent;
  const body = byId("table").tBodies[0];
  body.append(...[...body.rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a !== a || b !== b) return (a !== a) - (b !== b);
    return (down ? -1 : 1) * (place ? a - b : a.localeCompare(b));
  }));
}));

function filter() {
  const text = byId("find").value.trim().toLowerCase(), family = byId("family").value, rows = all("#table tbody tr");
  for (const row of rows)
    row.hidden = (family && row.dataset.family !== family) || !row.cells[0].textContent.toLowerCase().includes(text);
  byId("counted").value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
}
byId("find").addEventListener("input", filter);
byId("family").addEventListener("change", filter);
filter();

// The charts: Plotly is embedded as gzip; its colours follow the page's theme, and its width the paper when printing.
const dark = matchMedia("(prefers-color-scheme: dark)"), phone = matchMedia("(max-width: 600px)");
const paper = matchMedia("print");

function draw(figure, views, printing) {
  const place = figure.querySelector("select")?.value ?? 0;
  const { data, layout, narrow } = structuredClone(views[place]);
  const night = dark.matches && !printing;
  const [ink, grid, back] = night ? ["#e6e8ea", "#3a4148", "#22272c"] : ["#1b1f23", "#dde1e4", "#ffffff"];
  layout.font.color = ink;
  layout.hoverlabel = { bgcolor: back, bordercolor: grid, font: { color: ink } };
  for (const axis of [layout.xaxis, layout.yaxis])
    Object.assign(axis, { gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickcolor: grid });
  if (printing) layout.width = 620;
  if (phone.matches && !printing)
    data.forEach((trace, index) => {
      if (!trace.mode?.includes("text") && !narrow[index]) return;
      trace.mode = narrow[index] ? "markers+text" : "markers";
      trace.textposition = narrow[index] ?? trace.textposition;
    });
  const name = `${figure.dataset.chart}-${place}`;
  const config = {
    responsive: true, displaylogo: false, modeBarButtons: [["toImage"]], toImageButtonOptions: { filename: name, scale: 2 },
  };
  return Plotly.react(figure.querySelector(".plot"), data, layout, config);
}

async function charts() {
  const packed = Uint8Array.from(atob(byId("library").textContent), (letter) => letter.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(plain).text();
  document.head.append(script);
  const views = JSON.parse(byId("figures").textContent), figures = all("figure[data-chart]");
  const drawAll = (printing) => Promise.all(figures.map((one) => draw(one, views[one.dataset.chart], printing)));
  for (const one of figures) one.querySelector("select")?.addEventListener("change", () => draw(one, views[one.dataset.chart]));
  for (const query of [dark, phone, paper]) query.addEventListener("change", () => drawAll(paper.matches));
  addEventListener("beforeprint", () => drawAll(true));
  addEventListener("afterprint", () => drawAll(false));
  await drawAll(paper.matches);
  document.body.dataset.drawn = "";
}
if (byId("library"))
  charts().catch((error) => all(".plot").forEach((plot) => plot.append(`This browser cannot draw the chart (${error.message}).`)));

// Collapsed sections are opened for printing.
addEventListener("beforeprint", () => all("details").forEach((one) => { one.open = true; }));
