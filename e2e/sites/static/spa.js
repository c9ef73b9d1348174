// A page that is nothing but script: it knows only what input events told it,
// as the common frameworks do, and signs in without leaving the page.
const app = document.getElementById("app");
const state = { name: "", password: "" };
const make = (kind, props) => Object.assign(document.createElement(kind), props);
const name = make("input", { name: "name", placeholder: "User name" });
const password = make("input", { name: "pass", type: "password", placeholder: "Password" });
const button = make("button", { id: "go", textContent: "Sign in", disabled: true });
const said = make("p", {});
const change = (key) => (e) => {
  state[key] = e.target.value;
  button.disabled = !state.name || !state.password;
};
name.addEventListener("input", change("name"));
password.addEventListener("input", change("password"));
button.addEventListener("click", async () => {
  const r = await fetch("/api/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ user: { name: state.name, password: state.password }, remember: false }),
  });
  if (!r.ok) {
    said.textContent = await r.text();
    document.documentElement.style.background = "#c02020";
    return;
  }
  const me = await r.json();
  history.replaceState(null, "", "/home");
  document.documentElement.style.background = me.color;
  app.replaceChildren(make("p", { textContent: "You are signed in as " + me.user }));
});
// Drawn late, as such pages do.
setTimeout(() => app.replaceChildren(name, password, button, said), 150);
