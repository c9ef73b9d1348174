import { createContext, type ReactNode, useCallback, useContext, useEffect, useMemo, useState } from "react";
import { ApiError, api, asError, ask, onSignedOut, type Schemas } from "~/api/client";

export type Me = Schemas["GetMeMeOutputBody"];
export type Permission = string;

const readMe = () => ask(api.GET("/me"));

interface Session {
  me: Me;
  // can tells whether to offer something: the permission is held, if only in
  // some access groups. Core decides anyway.
  can(permission: Permission): boolean;
  // everywhere tells whether it is not limited to access groups.
  everywhere(permission: Permission): boolean;
  // within tells whether it is held in an access group.
  within(permission: Permission, group: string): boolean;
  // refresh reads again who this is, after something about it changed.
  refresh(): Promise<void>;
  signOut(): Promise<void>;
}

type State = { at: "loading" } | { at: "out"; why?: string } | { at: "in"; me: Me } | { at: "error"; error: ApiError };

// A mark of this browser profile, not of a person: what to load first.
const mark = "caponier-signed-in";
export const wasSignedIn = () => localStorage.getItem(mark) !== null;
const remember = (signedIn: boolean) => (signedIn ? localStorage.setItem(mark, "1") : localStorage.removeItem(mark));

const Context = createContext<Session | null>(null);

// A managing permission includes the viewing one (api.Principal.Can in core).
const managed: Record<string, string> = {
  "users:view": "users:manage",
  "targets:view": "targets:manage",
  "edges:view": "edges:manage",
  "connections:view": "connections:manage",
  "settings:view": "settings:manage",
  "groups:view": "groups:manage",
};

// allows is the rule behind can.
export function allows(held: readonly string[], permission: Permission): boolean {
  return held.includes(permission) || (managed[permission] !== undefined && held.includes(managed[permission]));
}

// groupsOf are the access groups that a limited permission holds in.
export function groupsOf(me: Pick<Me, "scoped">, permission: Permission): string[] {
  return [...(me.scoped?.[permission] ?? []), ...((managed[permission] && me.scoped?.[managed[permission]]) || [])];
}

// SessionGate shows the console to who is signed in, the sign-in page to who
// is not, and takes people back to where they were.
export function SessionGate(props: {
  children: ReactNode;
  signIn: (done: () => Promise<void>, why?: string) => ReactNode;
  loading: ReactNode;
  failed: (error: ApiError, again: () => void) => ReactNode;
}) {
  const [state, setState] = useState<State>({ at: "loading" });
  const refresh = useCallback(async () => {
    try {
      const me = await readMe();
      remember(true);
      setState({ at: "in", me });
    } catch (e) {
      const error = asError(e);
      if (error.status === 401) remember(false);
      setState((now) => (error.status === 401 ? { at: "out", why: now.at === "in" ? "Your session has ended. Sign in again to go on." : undefined } : now.at === "in" ? now : { at: "error", error }));
    }
  }, []);
  const signOut = useCallback(async () => {
    // Who came by single sign-on may have to sign out there, too.
    const next = await ask(api.GET("/login/logout-url")).then((o) => o.url, () => "");
    await ask(api.POST("/logout")).catch(() => undefined);
    // Everything the page holds in memory goes with the page.
    location.assign(next || "/");
  }, []);
  useEffect(() => {
    onSignedOut(() => void refresh());
    void refresh();
  }, [refresh]);
  const me = state.at === "in" ? state.me : null;
  const session = useMemo(
    () => me && {
      me, refresh, signOut,
      can: (p: Permission) => allows(me.permissions ?? [], p) || groupsOf(me, p).length > 0,
      everywhere: (p: Permission) => allows(me.permissions ?? [], p),
      within: (p: Permission, group: string) => allows(me.permissions ?? [], p) || groupsOf(me, p).includes(group),
    },
    [me, refresh, signOut],
  );
  if (state.at === "loading") return props.loading;
  if (state.at === "error") return props.failed(state.error, () => void refresh());
  if (!session) return props.signIn(refresh, state.at === "out" ? state.why : undefined);
  return <Context.Provider value={session}>{props.children}</Context.Provider>;
}

export function useSession(): Session {
  const session = useContext(Context);
  if (!session) throw new Error("useSession outside the signed-in part");
  return session;
}
