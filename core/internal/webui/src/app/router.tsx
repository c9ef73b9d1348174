import { createRootRoute, createRoute, createRouter, lazyRouteComponent, Outlet, redirect } from "@tanstack/react-router";
import { NotFound } from "./NotFound";
import { PageFailed } from "./PageFailed";
import { may, pages, type Rights } from "./pages";
import { Shell } from "./shell/Shell";
import { Loading } from "./Unreachable";

// home is where "/" leads: operators see how things are, others their targets.
export function home(rights: Rights): string {
  const overview = pages.find((p) => p.path === "/overview");
  return overview && may(overview, rights) ? overview.path : "/targets";
}

const Gone = () => <NotFound />;

// makeRouter turns the table of pages into routes. Pages read their parameters
// with useParams({ strict: false }) and their search with useSearch.
export function makeRouter(rights: Rights) {
  const toHome = () => {
    throw redirect({ to: home(rights), replace: true });
  };
  const root = createRootRoute({ component: Outlet, notFoundComponent: Gone });
  const shell = createRoute({ getParentRoute: () => root, id: "shell", component: Shell });
  const start = createRoute({
    getParentRoute: () => root,
    path: "/",
    beforeLoad: toHome,
  });
  // Paths of the way in lead on when one is in already.
  const inside = ["/sign-in", "/sign-in/$", "/setup"].map((path) => createRoute({ getParentRoute: () => root, path, beforeLoad: toHome }));
  const make = (parent: typeof shell | typeof root, page: (typeof pages)[number]) =>
    createRoute({
      getParentRoute: () => parent,
      path: page.path,
      staticData: { title: page.title },
      component: may(page, rights) ? lazyRouteComponent(page.load) : () => <NotFound why="You may not see this page." />,
    });
  const framed = pages.filter((p) => !p.bare).map((p) => make(shell, p));
  const bare = pages.filter((p) => p.bare).map((p) => make(root, p));
  return createRouter({
    routeTree: root.addChildren([start, ...inside, ...bare, shell.addChildren(framed)]),
    defaultPendingComponent: Loading,
    defaultErrorComponent: PageFailed,
    defaultNotFoundComponent: Gone,
    defaultPreload: "intent",
    scrollRestoration: true,
  });
}

declare module "@tanstack/react-router" {
  interface StaticDataRouteOption {
    title?: string;
  }
}
