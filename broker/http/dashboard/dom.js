// Elements from functions. Text is always set as text: nothing that a client chose is ever read as HTML.

/** An element: `h("button", {class: "x", onclick: f}, "text", other)`. Null children are left out. */
export function h(tag, props, ...children) {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(props ?? {})) {
		if (value === undefined || value === null || value === false) continue;
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else if (name === "class") element.className = value;
		else if (name === "data") Object.assign(element.dataset, value);
		else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
		else element.setAttribute(name, value === true ? "" : String(value));
	}
	put(element, children);
	return element;
}

function put(element, children) {
	for (const child of children) {
		if (child === null || child === undefined || child === false) continue;
		if (Array.isArray(child)) put(element, child);
		else element.append(child instanceof Node ? child : String(child));
	}
}

/** Have an element hold these children and no others. */
export function fill(element, ...children) {
	element.replaceChildren();
	put(element, children);
	return element;
}

export const byId = (id) => document.getElementById(id);

let ids = 0;
/** An id for a label to point at. */
export const freshId = () => `i${++ids}`;
