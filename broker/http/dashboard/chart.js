// Line charts that follow the colours of the page.
import { h } from "./dom.js";
import { bytes, clock, compact } from "./format.js";

/* global uPlot */
const loading = new Map();

/** Load a script that came with the page, once. */
export function script(path) {
	if (!loading.has(path)) {
		loading.set(path, new Promise((resolve, reject) => {
			const element = h("script", { src: path, onload: resolve, onerror: () => reject(new Error(`${path} did not load`)) });
			document.head.append(element);
		}));
	}
	return loading.get(path);
}

const HEIGHT = 150;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** `series`: [{label, colour: "--a"}]; `show` makes texts of values. Returns {element, set(columns), close}. */
export function chart(title, series, show = compact) {
	const place = h("div", { class: "plot" });
	const now = h("span", { class: "now" });
	const element = h("figure", { class: "chart", role: "group", "aria-label": title },
		h("figcaption", null, h("span", null, title), now), place);
	let plot = null;
	let data = [[], ...series.map(() => [])];

	const draw = () => {
		plot?.destroy();
		if (!place.clientWidth) return;
		const grid = { stroke: colour("--line"), width: 1 };
		const axis = { stroke: colour("--muted"), grid, ticks: grid, font: "11px system-ui, sans-serif" };
		plot = new uPlot({
			width: place.clientWidth,
			height: HEIGHT,
			pxAlign: 0,
			cursor: { y: false, drag: { x: false, y: false }, sync: { key: "overview" } },
			legend: { show: false },
			scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.1 : 1] } },
			axes: [{ ...axis, size: 24, space: 70, values: (_, marks) => marks.map((mark) => clock(mark * 1000).slice(0, marks[1] - marks[0] < 60 ? 8 : 5)) }, { ...axis, size: 52, space: 30, incrs: show === bytes ? Array.from({ length: 50 }, (_, power) => 2 ** power) : undefined, values: (_, marks) => marks.map((mark) => show(mark)) }],
			series: [{}, ...series.map((one) => ({
				label: one.label, stroke: colour(one.colour), width: 1.6, points: { show: false }, spanGaps: false,
				fill: series.length === 1 ? `${colour(one.colour)}22` : undefined,
			}))],
			hooks: { setCursor: [(own) => tell(own.cursor.idx)] },
		}, data, place);
		// The numbers are beside it as text.
		place.querySelector("canvas")?.setAttribute("aria-hidden", "true");
	};

	const tell = (index) => {
		const at = index ?? data[0].length - 1;
		now.replaceChildren(...series.map((one, column) => {
			const mark = h("i", { "aria-hidden": "true" });
			mark.style.background = `var(${one.colour})`;
			return h("span", null, mark, series.length > 1 ? `${one.label} ` : "", show(data[column + 1][at] ?? NaN));
		}));
	};

	const resize = new ResizeObserver(() => {
		if (plot && plot.width === place.clientWidth) return;
		if (plot && place.clientWidth) plot.setSize({ width: place.clientWidth, height: HEIGHT });
		else draw();
	});
	resize.observe(place);
	document.addEventListener("themechange", draw);

	return {
		element,
		/** Columns: times in seconds, then the values of each series. */
		set(columns) {
			data = columns;
			if (plot) plot.setData(data);
			else draw();
			if (plot?.cursor.idx === null || plot?.cursor.idx === undefined) tell();
		},
		close() {
			resize.disconnect();
			document.removeEventListener("themechange", draw);
			plot?.destroy();
			plot = null;
		},
	};
}
