// Graphs of the overview, and manners of the pages that refresh themselves. No page needs this to be read.
"use strict";

const SHOWN = {
  output_rate: [0], prompt_rate: [0], running: [0], waiting: [0], ttft: [0], tpot: [0], kv_usage: [0, 1], attainment: [0, 1],
};
const graphs = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw(box, samples) {
  const key = box.dataset.series;
  const data = [samples.map((one) => one.time), samples.map((one) => one[key])];
  const known = graphs.get(box.id);
  if (known && known.root.isConnected) {
    known.setSize({ width: box.clientWidth, height: box.clientHeight });
    known.setData(data);
    return;
  }
  const line = colour(key === "prompt_rate" || key === "ttft" ? "--read" : key === "attainment" ? "--good" : "--write");
  box.replaceChildren();
  graphs.set(box.id, new uPlot({
    width: box.clientWidth, height: box.clientHeight, cursor: { show: false }, legend: { show: false },
    padding: [4, 0, 2, 0], axes: [{ show: false }, { show: false }], select: { show: false },
    scales: { x: { time: true }, y: { range: (_, least, most) => [0, SHOWN[key][1] ?? Math.max(most * 1.1, 1e-6)] } },
    series: [{}, { stroke: line, width: 1.75, fill: line + "22", points: { show: false }, spanGaps: true }],
  }, data, box));
}

async function refresh() {
  const boxes = document.querySelectorAll(".spark");
  if (!boxes.length || document.hidden) return;
  try {
    const answer = await fetch("/console/history", { credentials: "same-origin" });
    if (!answer.ok) return;
    const samples = (await answer.json()).items;
    boxes.forEach((box) => draw(box, samples));
  } catch { /* The cluster is away for a moment; the next call tells. */ }
}

// A refresh must not take a list from under the hand of who chooses from it, nor a word from who writes it.
document.addEventListener("htmx:beforeRequest", (event) => {
  const polls = event.detail.elt.id === "live" && event.detail.requestConfig.verb === "get";
  if (polls && document.activeElement?.closest("#live select, #live input")) event.preventDefault();
});
// The session has ended, or the controller has another token: show the login.
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) location.reload();
});
document.addEventListener("DOMContentLoaded", () => { refresh(); setInterval(refresh, 2000); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { graphs.clear(); refresh(); });
