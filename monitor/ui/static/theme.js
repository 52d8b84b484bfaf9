/** Dark, light, or as the system has it; kept in the tab. */

const STORE = "probewatch.theme";
const ORDER = ["auto", "light", "dark"];

/** A button that turns through the themes. */
export function themeButton(button) {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `\u25d0 ${theme}`;
    button.title = "Colours: as the system has it, light, or dark";
    sessionStorage.setItem(STORE, theme);
  };
  show(ORDER.includes(sessionStorage.getItem(STORE)) ? sessionStorage.getItem(STORE) : "auto");
  button.addEventListener("click", () => {
    show(ORDER[(ORDER.indexOf(document.documentElement.dataset.theme) + 1) % ORDER.length]);
  });
}
