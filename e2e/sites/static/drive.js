// Waits for orders of the test that runs this site.
(async () => {
  const pause = (ms) => new Promise((f) => setTimeout(f, ms));
  for (;;) {
    try {
      const r = await fetch("/drive", { cache: "no-store" });
      if (r.status === 204) continue;
      if (!r.ok) throw new Error(String(r.status));
      const order = await r.json();
      if (order.go) {
        await fetch("/drive/" + order.id, { method: "POST", body: "gone" });
        location.assign(order.go);
        return;
      }
      let text;
      try {
        text = String(await new Function("return (async () => {" + order.run + "\n})()")());
      } catch (e) {
        text = "error: " + e;
      }
      await fetch("/drive/" + order.id, { method: "POST", body: text });
    } catch {
      await pause(300);
    }
  }
})();
