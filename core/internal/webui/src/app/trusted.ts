// Trusted Types (W3C TR): the page's policy lets no string become markup or
// script unless it passes here. Libraries need two harmless things: rules for
// style elements, and small inert templates of the recording player.

const markup = /^(?:[^<]|<\/?(?:div|span|pre|svg|g|path|circle|rect|line|polygon|polyline|defs|mask|use|symbol|title|text|br|b|i|em|button|kbd|p|ul|ol|li|dl|dt|dd|h1|h2|h3|table|tbody|thead|tr|td|th|video|audio|textarea|canvas)(?=[\s/>])[^<>]*>|<!--[^<>]*-->|<!>)*$/i;
const active = /[\s"'/]on\w+\s*=|javascript:|srcdoc|\bhref\s*=/i;

export function harmless(text: string): boolean {
  return !text.includes("<") || (markup.test(text) && !active.test(text));
}

// installTrustedTypes makes the page's one policy. Browsers without Trusted
// Types ignore the header and need nothing.
export function installTrustedTypes(): void {
  const factory = (window as { trustedTypes?: TrustedTypesFactory }).trustedTypes;
  if (!factory || factory.defaultPolicy) return;
  factory.createPolicy("default", {
    createHTML: (text) => {
      if (harmless(text)) return text;
      throw new TypeError("The console refused markup that could run something.");
    },
    createScriptURL: (url) => {
      const u = new URL(url, location.href);
      if (u.protocol === "blob:" ? u.origin === location.origin : u.origin === location.origin && u.pathname.startsWith("/assets/")) return url;
      throw new TypeError("The console refused a script that is not its own.");
    },
  });
}

interface TrustedTypesFactory {
  defaultPolicy: unknown;
  createPolicy(name: string, rules: { createHTML(text: string): string; createScriptURL(url: string): string }): unknown;
}

// nonce is what the policy asks of style elements made at run time.
export function nonce(): string {
  return document.querySelector<HTMLMetaElement>('meta[property="csp-nonce"]')?.nonce ?? "";
}

// installNonce gives the nonce to style elements that libraries make without
// asking for one (the terminal, the player).
export function installNonce(): void {
  const value = nonce();
  const create = document.createElement.bind(document);
  document.createElement = ((tag: string, options?: ElementCreationOptions) => {
    const el = create(tag, options);
    if (value && tag.toLowerCase() === "style") el.nonce = value;
    return el;
  }) as typeof document.createElement;
}
