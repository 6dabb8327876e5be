"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const MARGIN = { left: 52, right: 10, top: 10, bottom: 26 };
  const tip = document.getElementById("tip");

  function svg(name, attributes, parent) {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(element);
    return element;
  }

  function label(value) {
    if (value === null || value === undefined) return "-";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  }

  function ticks(low, high, count) {
    const raw = (high - low) / Math.max(count, 1);
    const power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= 0.7 * raw) || 10 * power;
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    for (let e = Math.floor(low); e <= Math.ceil(high); e += 1) {
      for (const m of high - low > 2 ? [1] : [1, 2, 3, 5, 7]) {
        const at = e + Math.log10(m);
        if (at >= low - 1e-9 && at <= high + 1e-9) found.push(at);
      }
    }
    return found;
  }

  function extent(lists, usable) {
    let low = Infinity;
    let high = -Infinity;
    for (const list of lists) {
      for (const value of list) {
        if (value === null || !usable(value)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    if (low > high) return [0, 1];
    if (low === high) return low === 0 ? [-1, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
    return [low, high];
  }

  // A chart redraws itself when its box changes. spec: lines [{name, x, y, color, dash, width, points}],
  // bands [{x, low, high, color, opacity}], xLabel(value), mark (x of a vertical line), log, describe.
  function chart(box, spec) {
    const state = { index: -1 };

    function draw() {
      const width = box.clientWidth;
      const height = box.clientHeight;
      if (!width || !height) return;
      box.replaceChildren();
      const usable = spec.log ? (v) => v > 0 : () => true;
      const bands = spec.bands || [];
      let [low, high] = extent(spec.lines.map((l) => l.y).concat(bands.map((b) => b.low), bands.map((b) => b.high)), usable);
      if (spec.log) [low, high] = [Math.log10(Math.max(low, 1e-30)), Math.log10(Math.max(high, 1e-30))];
      const room = (high - low || 1) * 0.05;
      low = !spec.log && low >= 0 && low - room < 0 ? 0 : low - room;
      high += room;
      const [first, last] = spec.span || extent(spec.lines.map((l) => l.x), () => true);
      const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
      const px = (x) => MARGIN.left + ((x - first) / (last - first || 1)) * inner.width;
      const py = (y) => MARGIN.top + (1 - ((spec.log ? Math.log10(y) : y) - low) / (high - low || 1)) * inner.height;
      const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": spec.describe }, box);

      for (const at of spec.log ? logTicks(low, high) : ticks(low, high, Math.max(3, Math.floor(inner.height / 40)))) {
        const y = MARGIN.top + (1 - (at - low) / (high - low)) * inner.height;
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }, root);
        svg("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, root).textContent = label(spec.log ? Math.pow(10, at) : at);
      }
      const places = (spec.xTicks || ((n) => ticks(first, last, n)))(Math.max(3, Math.floor(inner.width / (spec.xWide || 64))));
      let taken = 0;
      for (const at of places) {
        const words = svg("text", { y: height - 7, "text-anchor": "middle" }, root);
        words.textContent = spec.xLabel(at);
        const half = words.getComputedTextLength() / 2;
        const x = Math.min(px(at), width - half);
        words.setAttribute("x", x);
        if (x - half < taken) words.remove();
        else taken = x + half + 10;
      }

      const clip = `clip-${box.id}`;
      svg("rect", { x: MARGIN.left, y: 0, width: inner.width + MARGIN.right, height: height - MARGIN.bottom + 2 }, svg("clipPath", { id: clip }, root));
      const plot = svg("g", { "clip-path": `url(#${clip})` }, root);
      for (const at of spec.marks || []) svg("line", { class: "now", x1: px(at), x2: px(at), y1: MARGIN.top, y2: height - MARGIN.bottom }, plot);
      for (const at of spec.markName ? spec.marks : []) {
        const words = svg("text", { x: px(at) + 6, y: MARGIN.top + 9 }, plot);
        words.textContent = spec.markName;
        if (px(at) + 6 + words.getComputedTextLength() > width) Object.entries({ x: px(at) - 6, "text-anchor": "end" }).forEach(([k, v]) => words.setAttribute(k, v));
      }
      for (const band of bands) {
        const upper = band.x.map((x, k) => `${px(x).toFixed(1)},${py(band.high[k]).toFixed(1)}`);
        const lower = band.x.map((x, k) => `${px(x).toFixed(1)},${py(band.low[k]).toFixed(1)}`).reverse();
        svg("polygon", { points: upper.concat(lower).join(" "), fill: `var(--${band.color})`, "fill-opacity": band.opacity }, plot);
      }
      for (const line of spec.lines) {
        let path = "";
        let open = false;
        for (let k = 0; k < line.x.length; k += 1) {
          const y = line.y[k];
          const shown = y !== null && usable(y);
          if (shown) path += `${open ? "L" : "M"}${px(line.x[k]).toFixed(1)} ${py(y).toFixed(1)}`;
          if (shown && line.points) svg("circle", { cx: px(line.x[k]), cy: py(y), r: 3.2, fill: `var(--${line.color})` }, plot);
          open = shown;
        }
        svg("path", { d: path, fill: "none", stroke: `var(--${line.color})`, "stroke-width": line.width || 1.6, "stroke-opacity": line.opacity || 1,
          "stroke-dasharray": line.dash || "none", "stroke-linejoin": "round" }, plot);
      }

      const cross = svg("g", { visibility: "hidden" }, root);
      const bar = svg("line", { class: "cross", y1: MARGIN.top, y2: height - MARGIN.bottom }, cross);
      const axis = spec.lines.reduce((longest, l) => (l.x.length > longest.length ? l.x : longest), []);

      function point(index) {
        if (!axis.length) return;
        state.index = Math.max(0, Math.min(axis.length - 1, index));
        const at = axis[state.index];
        const rows = [spec.xTitle(at)];
        for (const line of spec.lines) {
          const k = nearest(line.x, at);
          if (line.hidden || k < 0 || Math.abs(px(line.x[k]) - px(at)) > 14) continue;
          rows.push(`${line.name}: ${label(line.y[k])}`);
        }
        for (const band of bands.filter((b) => b.name)) {
          const k = nearest(band.x, at);
          if (k >= 0 && Math.abs(px(band.x[k]) - px(at)) < 1) rows.push(`${band.name}: ${label(band.low[k])} to ${label(band.high[k])}`);
        }
        bar.setAttribute("x1", px(at));
        bar.setAttribute("x2", px(at));
        cross.setAttribute("visibility", "visible");
        showTip(root, px(at), rows);
      }

      function leave() {
        cross.setAttribute("visibility", "hidden");
        tip.hidden = true;
      }

      root.addEventListener("pointermove", (event) => {
        const x = event.clientX - root.getBoundingClientRect().left;
        point(nearest(axis, first + ((x - MARGIN.left) / inner.width) * (last - first)));
      });
      root.addEventListener("pointerleave", leave);
      root.addEventListener("blur", leave);
      root.addEventListener("keydown", (event) => {
        const jump = { ArrowRight: 1, ArrowLeft: -1, PageUp: 20, PageDown: -20 }[event.key];
        if (event.key === "Escape") leave();
        if (!jump) return;
        event.preventDefault();
        point(state.index < 0 ? (jump > 0 ? 0 : axis.length - 1) : state.index + jump);
      });
    }

    new ResizeObserver(draw).observe(box);
    return { draw, spec };
  }

  function nearest(list, value) {
    let low = 0;
    let high = list.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (list[middle] < value) low = middle;
      else high = middle;
    }
    if (high < 0) return -1;
    return Math.abs(list[low] - value) <= Math.abs(list[high] - value) ? low : high;
  }

  function showTip(root, x, rows) {
    tip.textContent = rows.join("\n");
    tip.hidden = false;
    const box = root.getBoundingClientRect();
    const page = document.documentElement.clientWidth;
    let left = box.left + x + 14;
    if (left + tip.offsetWidth > page - 8) left = box.left + x - 14 - tip.offsetWidth;
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${box.top + window.scrollY + 14}px`;
  }

  function legend(box, entries) {
    const list = document.createElement("ul");
    list.className = "legend";
    for (const entry of entries) {
      const item = document.createElement("li");
      const mark = svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
      svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, stroke: `var(--${entry.color})`, "stroke-width": 2.4, "stroke-opacity": entry.opacity || 1,
        "stroke-dasharray": entry.dash || "none" }, mark);
      if (entry.points) svg("circle", { cx: 13, cy: 5, r: 3.2, fill: `var(--${entry.color})` }, mark);
      item.append(mark, document.createTextNode(entry.name));
      list.appendChild(item);
    }
    box.after(list);
    return list;
  }

  function trainingCharts(curves) {
    const steps = { xLabel: (v) => label(v), xTitle: (v) => `step ${v}`, marks: data.restarts };
    const loss = [
      { name: "training, each step", ...curves.step_loss, color: "seasonal_naive", width: 1, opacity: 0.75 },
      { name: "training, each epoch", ...curves.train_loss, color: "candidate", width: 2.2, points: true },
      { name: "validation, each epoch", ...curves.validation_loss, color: "champion", width: 2.2, points: true, dash: "6 3" },
    ];
    const box = document.getElementById("chart-loss");
    const lossChart = chart(box, { ...steps, markName: "resumed", lines: loss, describe: "Training and validation loss over steps. Arrow keys read values." });
    legend(box, loss);
    document.getElementById("log-scale").addEventListener("change", (event) => {
      lossChart.spec.log = event.target.checked;
      lossChart.draw();
    });
    const single = {
      learning_rate: [{ name: "learning rate", ...curves.learning_rate, color: "candidate", width: 2 }],
      gradient_norm: [{ name: "gradient norm", ...curves.gradient_norm, color: "candidate", width: 1.1 }],
      windows_per_second: [
        { name: "each step", ...curves.windows_per_second, color: "seasonal_naive", width: 1, opacity: 0.6 },
        { name: "each epoch", ...curves.epoch_windows_per_second, color: "candidate", width: 2.2, points: true },
      ],
    };
    for (const name of Object.keys(single)) {
      const place = document.getElementById(`chart-${name}`);
      const title = place.parentElement.querySelector("strong").textContent;
      chart(place, { ...steps, lines: single[name], describe: `${title} over steps. Arrow keys read values.` });
    }
  }

  function overlaidCharts(runs) {
    const ofSteps = runs.map((run) => ({ name: `${run.name}, each step`, ...run.step_loss, color: run.color, width: 1, opacity: 0.4 }));
    const ofEpochs = (key) => runs.map((run) => ({ name: run.name, ...run[key], color: run.color, dash: run.dash, width: 2.2, points: true }));
    const lines = { validation_loss: ofEpochs("validation_loss"), train_loss: ofSteps.concat(ofEpochs("train_loss")) };
    for (const name of Object.keys(lines)) {
      const box = document.getElementById(`overlay-${name}`);
      if (!box) continue;
      const title = box.parentElement.querySelector("strong").textContent;
      const drawn = lines[name].filter((line) => line.x.length);
      chart(box, { lines: drawn, xLabel: label, xTitle: (v) => `step ${v}`, describe: `${title} of each run over steps. Arrow keys read values.` });
      legend(box, drawn);
    }
  }

  function forecastChart(forecasts) {
    const box = document.getElementById("forecast");
    const chooser = document.getElementById("series");
    const boxes = [...document.querySelectorAll("input[name=model]")];
    const middle = forecasts.quantiles.indexOf(0.5);
    const drawn = chart(box, spec());
    let keys = legend(box, drawn.spec.lines);

    function spec() {
      const series = forecasts.series[Number(chooser.value)];
      const past = series.history.length;
      const shown = Math.min(past, Math.max((box.clientWidth < 560 ? 1 : 2) * series.actual.length, 48));
      const start = past - shown;
      const future = series.actual.map((_, k) => past + k);
      const joined = [past - 1, ...future];
      const lines = [
        { name: "actual", x: [...Array(shown + series.actual.length).keys()].map((k) => start + k),
          y: series.history.slice(start).concat(series.actual), color: "ink", width: 1.6 },
      ];
      const bands = [];
      for (const model of boxes.filter((b) => b.checked).map((b) => b.value)) {
        const values = series.forecasts[model];
        if (!values) continue;
        const color = model in data.models ? model : "other";
        const name = data.models[model] || model;
        const last = forecasts.quantiles.length - 1;
        for (let k = 0; k < last - k; k += 1) {
          const low = values.map((step) => step[k]);
          const high = values.map((step) => step[last - k]);
          if (low.concat(high).includes(null)) continue;
          const inside = Math.round(100 * (forecasts.quantiles[last - k] - forecasts.quantiles[k]));
          bands.push({ x: future, low, high, color, opacity: 0.13, name: k === 0 ? `${name}, ${inside} %` : "" });
        }
        const joint = series.history[past - 1] === undefined ? null : series.history[past - 1];
        lines.push({ name: `${name}, median`, x: joined, y: [joint, ...values.map((step) => step[middle])], color, width: 2.2,
          dash: { champion: "7 3", seasonal_naive: "2 3" }[model] });
      }
      const time = (v) => (series.times[v] || "").replace("T", " ");
      const days = new Set(series.times.slice(start).map((t) => t.slice(0, 10))).size;
      return {
        lines, bands, marks: [past - 0.5], markName: "forecast", span: [start, past + series.actual.length - 1],
        xWide: 92, xTicks: (count) => spread(start, past + series.actual.length - 1, count),
        xLabel: (v) => (days > 20 ? time(v).slice(0, 10) : time(v).slice(5, 16)),
        xTitle: time,
        describe: `History, actual values and forecasts of ${series.id}. Arrow keys read values.`,
      };
    }

    function spread(first, last, count) {
      const every = Math.max(1, Math.ceil((last - first) / count));
      const found = [];
      for (let v = first; v <= last; v += every) found.push(v);
      return found;
    }

    function redraw() {
      Object.assign(drawn.spec, spec());
      drawn.draw();
      keys.remove();
      keys = legend(box, drawn.spec.lines);
    }

    chooser.addEventListener("change", redraw);
    for (const input of boxes) input.addEventListener("change", redraw);
  }

  if (data.curves) trainingCharts(data.curves);
  if (data.overlays) overlaidCharts(data.overlays);
  if (data.forecasts && data.forecasts.series.length) forecastChart(data.forecasts);
})();
