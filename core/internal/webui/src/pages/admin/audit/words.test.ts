import { expect, test } from "vitest";
import { sentence } from "./words";

const event = (type: string, fields: Record<string, string> = {}, actor = { kind: "user", id: "usr_1", name: "anna" }, object = { kind: "user", id: "usr_2", name: "boris" }) => ({
  type, fields, actor, object, hash: "", id: "aud_1", number: 1, outcome: "ok", seq: 1, time: "2026-01-01T00:00:00Z",
});

test("events are said in words", () => {
  expect(sentence(event("user.locked"))).toBe("anna locked boris");
  expect(sentence(event("role.member_added", { role_name: "db" }))).toBe("anna made boris a member of db");
  expect(sentence(event("setting.changed", { old: "1", new: "2" }, undefined, { kind: "setting", id: "a.b", name: "a.b" }))).toBe("anna changed a.b from 1 to 2");
});

test("what was erased, or is unknown, is not made up", () => {
  expect(sentence(event("user.locked", {}, { kind: "user", id: "usr_1", name: "" }))).toBe("usr_1 locked boris");
  expect(sentence(event("edge.disconnected"))).toContain("?");
  expect(sentence(event("thing.new_verb"))).toBe("anna: thing new verb boris");
});

test("a field cannot put itself in place of another", () => {
  expect(sentence(event("setting.changed", { old: "{new}", new: "x" }))).toContain("from {new} to x");
});
