import { describe, expect, it } from "vitest";
import { line, parse, parseAll } from "./network";

describe("destinations", () => {
  it.each([
    "10.20.0.0/24 tcp 502",
    "10.20.0.10-10.20.0.19 udp 161-162",
    "10.20.0.5",
    "10.20.0.0/24 tcp 502 → 10.9.0.1:1502",
    "10.20.0.0/24 tcp → 10.9.0.1",
    "fd00:20::/64 tcp 502 → [fd00:9::1]:1502",
    "fd00:20::/64 → fd00:9::1",
  ])("%s is read as it is written", (text) => {
    const d = parse(text);
    expect(typeof d === "string" ? d : line(d)).toBe(text);
  });
  it("takes an ASCII arrow and spare spaces", () => {
    expect(parse("  10.0.0.1   tcp  22->10.0.0.2:2222 ")).toEqual({ addrs: "10.0.0.1", proto: "tcp", ports: "22", dnat_addr: "10.0.0.2", dnat_port: 2222 });
  });
  it("names the line that is wrong", () => {
    const { destinations, problems } = parseAll("10.0.0.1 tcp 22\n\n10.0.0.2 icmp\n10.0.0.3 tcp 1 2");
    expect(destinations).toHaveLength(1);
    expect(problems).toEqual(["Line 3 icmp is not tcp, udp or any.", "Line 4 is too long: write address, protocol, ports."]);
  });
});
