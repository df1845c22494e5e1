// Before the first paint: the theme that was chosen, if one was.
(() => {
	try {
		const chosen = localStorage.getItem("rookery.theme");
		if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
	} catch {
		// No storage: the theme of the system.
	}
})();
