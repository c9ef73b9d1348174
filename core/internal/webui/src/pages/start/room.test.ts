import { expect, test } from "vitest";
import type { Edge } from "~/pages/fleet/edge";
import { room } from "./room";

const node = (kind: string, web?: { live?: number; warm?: number; room?: number; problem?: string }, cordoned = false) => ({ kind, cordoned, tunnel: web && { web: { live: 0, warm: 0, room: 0, max: 9, ...web } } }) as Edge;

test.each([
  ["both have room", [node("carrier", { live: 2, warm: 1, room: 5 }), node("carrier", { live: 1, room: 3 }), node("webproxy", { room: 100 })], { live: 3, warm: 1, room: 8 }],
  ["the webproxy is short", [node("carrier", { room: 5 }), node("webproxy", { room: 2 })], { live: 0, warm: 0, room: 2 }],
  ["cordoned carriers take nothing, but carry", [node("carrier", { live: 4, warm: 2, room: 5 }, true), node("carrier", { room: 1 }), node("webproxy", { room: 9 })], { live: 4, warm: 0, room: 1 }],
  ["no carrier", [node("carrier"), node("webproxy", { room: 9 })], { live: 0, warm: 0, room: 0, problem: "No carrier is connected: nothing can be opened." }],
  ["no webproxy", [node("carrier", { room: 9 })], { live: 0, warm: 0, room: 0, problem: "No webproxy is connected: nothing can be opened." }],
  ["the carrier says why", [node("carrier", { problem: "Docker does not answer" }), node("webproxy", { room: 9 })], { live: 0, warm: 0, room: 0, problem: "Docker does not answer" }],
])("%s", (_, nodes, want) => {
  expect(room(nodes)).toEqual(want);
});
