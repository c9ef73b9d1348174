import {
  type Icon, IconBrowser, IconBuildingFortress, IconCertificate, IconChartAreaLine, IconClipboardList, IconFingerprint, IconHistory, IconKey, IconListDetails, IconMovie, IconNetwork, IconPlugConnected,
  IconServer2, IconSettings, IconSitemap, IconStack2, IconTargetArrow, IconUserCheck, IconUserCircle, IconUsers, IconUsersGroup, IconWorld,
} from "@tabler/icons-react";
import type { ComponentType } from "react";

// A page of the console. Everybody who is signed in sees it, unless needs says
// otherwise (one of them suffices). hidden ones are reached by links only.
export interface Page {
  path: string; // as in TanStack Router: /fleet/$id
  title: string;
  icon: Icon;
  section: "work" | "operate" | "admin" | "me";
  needs?: readonly string[];
  // everywhere: what it needs must not be limited to access groups.
  everywhere?: boolean;
  hidden?: boolean;
  // bare pages have no frame around them (the terminal in a window of its own).
  bare?: boolean;
  load: () => Promise<{ default: ComponentType }>;
}

// THE table: add a page here, nothing else.
export const pages: readonly Page[] = [
  { path: "/targets", title: "My targets", icon: IconTargetArrow, section: "work", load: () => import("~/pages/targets") },
  { path: "/terminal", title: "Terminal", icon: IconPlugConnected, section: "work", hidden: true, load: () => import("~/pages/terminal") },
  { path: "/terminal/$target", title: "Terminal", icon: IconPlugConnected, section: "work", hidden: true, load: () => import("~/pages/terminal") },
  { path: "/watch/$connection", title: "Watch", icon: IconPlugConnected, section: "work", hidden: true, load: () => import("~/pages/watch") },
  { path: "/web", title: "Web session", icon: IconBrowser, section: "work", hidden: true, bare: true, load: () => import("~/pages/web") },
  { path: "/web/$id", title: "Web session", icon: IconBrowser, section: "work", hidden: true, bare: true, load: () => import("~/pages/web") },
  { path: "/network", title: "Network access", icon: IconNetwork, section: "work", load: () => import("~/pages/network") },
  { path: "/connections", title: "Connections", icon: IconHistory, section: "work", load: () => import("~/pages/connections") },
  { path: "/connections/$id", title: "Connection", icon: IconHistory, section: "work", hidden: true, load: () => import("~/pages/connections/detail") },
  { path: "/approvals", title: "Approvals", icon: IconUserCheck, section: "work", needs: ["web:approve"], load: () => import("~/pages/approvals") },
  { path: "/recordings", title: "Recordings", icon: IconMovie, section: "work", load: () => import("~/pages/recordings") },
  { path: "/recordings/$id", title: "Recording", icon: IconMovie, section: "work", hidden: true, load: () => import("~/pages/recordings/player") },

  { path: "/overview", title: "Overview", icon: IconChartAreaLine, section: "operate", needs: ["connections:view", "edges:view"], load: () => import("~/pages/start") },
  { path: "/fleet", title: "Fleet", icon: IconBuildingFortress, section: "operate", needs: ["edges:view"], load: () => import("~/pages/fleet") },
  { path: "/fleet/$id", title: "Edge node", icon: IconBuildingFortress, section: "operate", needs: ["edges:view"], hidden: true, load: () => import("~/pages/fleet/detail") },

  { path: "/admin/users", title: "Users", icon: IconUsers, section: "admin", needs: ["users:view"], load: () => import("~/pages/admin/users") },
  { path: "/admin/users/$id", title: "User", icon: IconUsers, section: "admin", needs: ["users:view"], hidden: true, load: () => import("~/pages/admin/users/detail") },
  { path: "/admin/roles", title: "Roles", icon: IconUsersGroup, section: "admin", needs: ["users:view"], load: () => import("~/pages/admin/roles") },
  { path: "/admin/roles/$id", title: "Role", icon: IconUsersGroup, section: "admin", needs: ["users:view"], hidden: true, load: () => import("~/pages/admin/roles/detail") },
  { path: "/admin/sites", title: "Sites", icon: IconWorld, section: "admin", needs: ["targets:view"], load: () => import("~/pages/admin/sites") },
  { path: "/admin/targets", title: "Targets", icon: IconServer2, section: "admin", needs: ["targets:view"], load: () => import("~/pages/admin/targets") },
  { path: "/admin/targets/$id", title: "Target", icon: IconServer2, section: "admin", needs: ["targets:view"], hidden: true, load: () => import("~/pages/admin/targets/detail") },
  { path: "/admin/web-target", title: "Add a web target", icon: IconWorld, section: "admin", needs: ["targets:manage"], hidden: true, load: () => import("~/pages/admin/web/Editor") },
  { path: "/admin/targets/$id/web", title: "Edit a web target", icon: IconWorld, section: "admin", needs: ["targets:manage"], hidden: true, load: () => import("~/pages/admin/web/Editor") },
  { path: "/admin/targets/$id/try", title: "Try a web target", icon: IconWorld, section: "admin", needs: ["targets:manage"], hidden: true, load: () => import("~/pages/admin/web/Try") },
  { path: "/admin/secrets", title: "Secrets", icon: IconKey, section: "admin", needs: ["secrets:manage"], load: () => import("~/pages/admin/secrets") },
  { path: "/admin/groups", title: "Access groups", icon: IconSitemap, section: "admin", needs: ["groups:view"], load: () => import("~/pages/admin/groups") },
  { path: "/admin/groups/$id", title: "Access group", icon: IconSitemap, section: "admin", needs: ["groups:view"], hidden: true, load: () => import("~/pages/admin/groups/detail") },
  { path: "/admin/tokens", title: "API clients", icon: IconStack2, section: "admin", needs: ["users:manage"], everywhere: true, load: () => import("~/pages/admin/tokens") },
  { path: "/admin/ssh-ca", title: "Certificates", icon: IconCertificate, section: "admin", needs: ["settings:view"], load: () => import("~/pages/admin/sshca") },
  { path: "/admin/sign-in", title: "Sign-in", icon: IconFingerprint, section: "admin", needs: ["settings:view"], load: () => import("~/pages/admin/ways") },
  { path: "/admin/settings", title: "Settings", icon: IconSettings, section: "admin", needs: ["settings:view"], load: () => import("~/pages/admin/settings") },
  { path: "/admin/audit", title: "Audit log", icon: IconClipboardList, section: "admin", needs: ["audit:view"], load: () => import("~/pages/admin/audit") },

  { path: "/sign-in/sso/$provider", title: "Single sign-on", icon: IconUserCircle, section: "me", hidden: true, bare: true, load: () => import("~/pages/account/linked") },
  { path: "/account", title: "My account", icon: IconUserCircle, section: "me", hidden: true, load: () => import("~/pages/account") },
];

export const sections: Record<Page["section"], string> = { work: "Work", operate: "Operate", admin: "Administration", me: "Me" };
export const listIcon = IconListDetails;

// Rights are what of a session decides about pages.
export interface Rights {
  can: (permission: string) => boolean;
  everywhere: (permission: string) => boolean;
}

// may tells whether a page is offered.
export function may(page: Page, { can, everywhere }: Rights): boolean {
  return !page.needs || page.needs.some(page.everywhere ? everywhere : can);
}
