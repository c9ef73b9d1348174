// The administrative rights, in words. A managing one includes its viewing one.
export const permissions: readonly (readonly [string, string])[] = [
  ["users:view", "See users and roles"], ["users:manage", "Manage users, roles and API clients"],
  ["targets:view", "See targets, sites and grants"], ["targets:manage", "Manage targets, sites and grants"],
  ["edges:view", "See edge nodes"], ["edges:manage", "Manage edge nodes and enrolment"],
  ["connections:view", "See all connections"], ["connections:manage", "End, lock and tag all connections"],
  ["connections:watch", "Watch live sessions"], ["web:approve", "Approve waiting requests of web sessions"],
  ["recordings:view", "Play all recordings"],
  ["audit:view", "Read the audit log"], ["secrets:manage", "Manage shared secrets"],
  ["groups:view", "See access groups"], ["groups:manage", "Manage access groups, their SSH authority and anchors"],
  ["settings:view", "See settings"], ["settings:manage", "Change settings and SSH authorities"],
];

// Rights over the whole installation, which cannot be limited to access groups.
export const whole: readonly string[] = ["settings:view", "settings:manage"];

export const features = ["shell", "exec", "file_transfer", "forward", "remote_forward", "x11", "agent_forward", "web", "network"] as const;

const featureWords: Record<string, string> = {
  shell: "Shell", exec: "Commands", file_transfer: "Files", forward: "Forwards", remote_forward: "Remote forwards", x11: "X11", agent_forward: "Agent", web: "Web", network: "Network", all: "Everything",
};
export const featureWord = (f: string) => featureWords[f] ?? f;
