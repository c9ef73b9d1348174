// openPath is the page that opens a session: a target's name or ID, and the
// account. It stands alone so that lists can link to it without the viewer.
export const openPath = (target: string, account: string) => `/web?${new URLSearchParams(account ? { target, account } : { target })}`;

// viewPath is the page of a session that is open; watch only looks.
export const viewPath = (id: string, watch = false) => `/web/${encodeURIComponent(id)}${watch ? "?watch=1" : ""}`;
