// Fills the fields of a page with placeholders and presses its button.
(() => {
  "use strict";
  const fills = /*fills*/[];
  const me = document.currentScript;
  const src = me.src;
  const nonce = me.nonce;
  // How it went is told by loading this script once more: that is what the
  // page's policy permits.
  const tell = (outcome, fields) => {
    try {
      const s = document.createElement("script");
      s.nonce = nonce;
      s.src = src + "?outcome=" + outcome + "&fields=" + encodeURIComponent(fields.join(", ").slice(0, 500));
      s.onload = s.onerror = () => s.remove();
      (document.head || document.documentElement).append(s);
    } catch {
      // the page lets nobody load scripts: then nothing is told
    }
  };
  const find = (s) => {
    for (const f of [() => document.getElementsByName(s)[0], () => document.getElementById(s), () => document.querySelector(s)]) {
      try {
        const e = f();
        if (e) return e;
      } catch {
        // not a selector
      }
    }
    return null;
  };
  const shown = (e) => e.getClientRects().length > 0 && !e.disabled && !e.readOnly;
  const field = (e) => e instanceof HTMLInputElement || e instanceof HTMLTextAreaElement;
  const want = (e, v) => (e.type === "email" ? v + "/*mail*/" : v);
  const set = (e, v) => {
    const proto = e instanceof HTMLTextAreaElement ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    e.focus();
    Object.getOwnPropertyDescriptor(proto, "value").set.call(e, want(e, v));
    e.dispatchEvent(new InputEvent("input", { bubbles: true, inputType: "insertText" }));
    e.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const press = (selector, form, until) => {
    const b = find(selector);
    if (b && !b.disabled) {
      if (form) form.noValidate = true;
      tell("pressed", []);
      setTimeout(() => b.click(), 30);
    } else if (Date.now() < until) setTimeout(() => press(selector, form, until), 100);
    else tell("no_button", [selector]);
  };
  const settle = (fill, fields, round) => {
    // Scripts that take a page over may have put their own empty values back.
    const lost = fields.filter(([e, v]) => e.isConnected && e.value !== want(e, v));
    if (lost.length > 0 && round < 5) {
      for (const [e, v] of lost) set(e, v);
      setTimeout(() => settle(fill, fields, round + 1), 120);
      return;
    }
    tell("filled", []);
    if (fill.submit) press(fill.submit, fields[0][0].form, Date.now() + 5000);
  };
  const attempt = () => {
    for (const fill of fills) {
      if (fill.done) continue;
      const fields = fill.fields.map((f) => [find(f.s), f.v]);
      if (!fields.every(([e]) => e && field(e) && shown(e))) continue;
      fill.done = true;
      for (const [e, v] of fields) set(e, v);
      setTimeout(() => settle(fill, fields, 0), 60);
    }
    return fills.every((f) => f.done);
  };
  const start = () => {
    if (attempt()) return;
    const o = new MutationObserver(() => {
      if (attempt()) o.disconnect();
    });
    o.observe(document, { subtree: true, childList: true, attributes: true });
    setTimeout(() => {
      const missing = fills.filter((f) => !f.done).flatMap((f) => f.fields.map((x) => x.s).filter((x) => !find(x) || !shown(find(x))));
      if (missing.length > 0) tell("missing", missing);
    }, 5000);
    setTimeout(() => o.disconnect(), 600000);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start, { once: true });
  else start();
})();
