// Asks the site for the password it was sent, in every way, and looks for it in
// the answers. It knows the password's hash and length only.
(async () => {
  const at = document.getElementById("echo");
  const say = new URLSearchParams(location.search).get("say");
  const query = say ? "?say=" + encodeURIComponent(say) : "";
  const want = await (await fetch("/echo/hash" + query)).json();
  const hex = (b) => [...new Uint8Array(b)].map((x) => x.toString(16).padStart(2, "0")).join("");
  const has = async (text) => {
    const runes = [...text];
    for (let i = 0; i + want.length <= runes.length; i++) {
      const part = new TextEncoder().encode(runes.slice(i, i + want.length).join(""));
      if (hex(await crypto.subtle.digest("SHA-256", part)) === want.sha256) return true;
    }
    return false;
  };
  const utf8 = (binary) => new TextDecoder().decode(Uint8Array.from(binary, (c) => c.charCodeAt(0)));
  const attempt = (f) => {
    try {
      return f();
    } catch {
      return "";
    }
  };
  const unbase64 = (text) =>
    text
      .split(/\s+/)
      .map((w) => attempt(() => utf8(atob(w.replaceAll("-", "+").replaceAll("_", "/")))))
      .join("\n");
  const forms = (text) => [
    text,
    attempt(() => decodeURIComponent(text.replaceAll("+", " "))),
    attempt(() => decodeURIComponent(text)),
    attempt(() => String(JSON.parse(text).you_sent ?? "")),
    attempt(() => utf8(text)),
    new DOMParser().parseFromString(text, "text/html").documentElement.textContent,
    unbase64(text),
  ];
  const anyHas = async (texts) => {
    for (const text of texts) for (const form of forms(text)) if (await has(form)) return true;
    return false;
  };
  const socket = (path) =>
    new Promise((done) => {
      const ws = new WebSocket(location.origin.replace(/^http/, "ws") + path);
      ws.onmessage = (e) => {
        ws.close();
        done(e.data.replaceAll("~", ""));
      };
      ws.onerror = () => done("no socket");
    });
  const stream = (path) =>
    new Promise((done) => {
      const es = new EventSource(path);
      es.onmessage = (e) => {
        es.close();
        done(e.data);
      };
      es.onerror = () => {
        es.close();
        done("no events");
      };
    });
  const found = {};
  for (const mode of at.dataset.modes.split(" ")) {
    const path = "/echo/" + mode + query;
    let texts;
    try {
      if (mode === "socket" || mode === "fragments") texts = [await socket(path)];
      else if (mode === "sse") texts = [await stream(path)];
      else {
        const r = await fetch(path);
        texts = [await r.text(), ...(mode === "header" ? [...r.headers.values()] : [])];
      }
      found[mode] = await anyHas(texts);
    } catch {
      found[mode] = false;
    }
  }
  const leaked = Object.keys(found).filter((m) => found[m]);
  at.textContent = leaked.length ? "found in " + leaked.join(", ") : "found nowhere";
  if (leaked.length) document.documentElement.style.background = "#c02020";
  await fetch("/echo/report", { method: "POST", body: JSON.stringify(found) });
})();
